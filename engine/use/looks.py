"""record/test_looks.jsonl: one line for each look at the test split, written before anybody sees its numbers.

{"time", "weights" (digest), "restore_file", "data" (fingerprint), "code" (tree, or folder: frozen), "metrics"},
"overrides" where the command line changed the metrics or the views, and "other_data" (its place) where the data was not
that of the training: such a look is recorded and not counted. With "test": "sealed" there is one look.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.use.inference import Weights
from folder.console import break_hard_link
from folder.folder import Folder, now
from include import EXIT_DAMAGED, RECORD, TEST_LOOKS
from report.json_files import count_looks
from utils import JsonObject, UserError, write_atomic

SEALED = "sealed"
HOW = 'the test split is sealed ("test": "sealed"): one look'
DECIDING = ("metrics", "tta")  # parameters that may be given to evaluate.py and change its numbers


def record_look(folder: Path, look: Mapping[str, object], once: bool = False) -> int:
    """Append a look. Returns the number of looks so far, this one included.

    UserError when `once` is given and another process looked with other weights meanwhile.
    """
    path = folder / TEST_LOOKS
    (folder / RECORD).mkdir(exist_ok=True)
    note_lost_looks(folder)
    break_hard_link(path)
    with open(path, "a+", encoding="utf-8") as file:
        # one process at a time, where the file system has locks
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if once:
            check_same_weights(folder, read_looks(folder), str(look["weights"]))
        is_torn = path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        file.write(("\n" if is_torn else "") + json.dumps(look, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return count_looks(str(path))


def note_lost_looks(folder: Path) -> None:
    """Where there are test metrics and no list of looks, somebody removed the list: its looks count as one."""
    path = folder / TEST_LOOKS
    if not path.exists() and (metrics := list_test_metrics(folder)):
        lost = {"time": now(), "lost": f"{', '.join(metrics)} was there without this list: at least one earlier look"}
        write_atomic(path, json.dumps(lost, ensure_ascii=False) + "\n")


def list_test_metrics(folder: Path) -> list[str]:
    """The files that earlier looks left in the folder."""
    return sorted(path.name for path in folder.glob("metrics_test_*.json"))


def read_looks(folder: Path) -> list[JsonObject]:
    """The recorded looks; lines that are torn are left out."""
    path = folder / TEST_LOOKS
    looks = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            look = json.loads(line)
            looks += [look] if isinstance(look, dict) else []
    return looks


# --- "test": "sealed" -----------------------------------------------------------------------------------


def is_sealed(folder: Folder) -> bool:
    return folder.resolved().get("test") == SEALED


def find_sealed_look(folder: Folder, weights: Weights) -> JsonObject | None:
    """The one look of a sealed test split; None before it, and where looks are only counted.

    UserError when it was at other weights.
    """
    if not is_sealed(folder):
        return None
    looks = read_looks(folder.path)
    lost = [str(look["lost"]) for look in looks if "lost" in look]
    if not looks and (metrics := list_test_metrics(folder.path)):
        lost = [f"{metrics[0]} was there without this list"]
    if lost:
        raise UserError(f"{folder.path / TEST_LOOKS}: {lost[0]}; {HOW}, so bring the list back", EXIT_DAMAGED)
    check_same_weights(folder.path, looks, weights.kit["digest"])
    return looks[0] if looks else None


def check_same_weights(folder: Path, looks: Sequence[JsonObject], weights: str) -> None:
    """UserError when a look was at other weights than those of this digest."""
    if other := next((look for look in looks if look.get("weights") != weights), None):
        at = f"weights {other.get('restore_file')!r} on {other.get('time')}"
        raise UserError(f"{folder}: {HOW}, and it was taken at other {at}; measure these with --split valid")


def recorded_overrides(folder: Folder, look: JsonObject | None, overrides: JsonObject) -> JsonObject:
    """`overrides`, with the metrics and views of the recorded look if there is one. UserError when others are given."""
    if not look:
        return overrides
    recorded = look.get("overrides") or {}
    given = deciding(overrides)
    if given and given != recorded:
        flags = ", ".join(f"--{name}" for name in given)
        raise UserError(f"{folder.path}: {HOW}, and it was taken on {look.get('time')}; leave {flags} out")
    return overrides | recorded


def deciding(overrides: JsonObject) -> JsonObject:
    """The overrides that change what is measured."""
    return {name: overrides[name] for name in DECIDING if name in overrides}


def describe_recorded(look: JsonObject, files: Mapping[str, Path]) -> str:
    """What is printed where the one look has been taken already."""
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in look["metrics"].items() if value is not None)
    lines = [f"{HOW}: these are its metrics, of {look['time']}", f"test: {metrics}"]
    return "\n".join([*lines, *(f"{name:10} {path}" for name, path in files.items())])


# --- counting -------------------------------------------------------------------------------------------


def count_look(
    folder: Folder, weights: Weights, facts: JsonObject, look: JsonObject | None, overrides: JsonObject
) -> tuple[JsonObject, int]:
    """Record a look at the test split, or find it in `look`, the recorded one. Returns (metrics, number of looks).

    `facts`: metrics, data, code, restore_file. UserError when the recorded look was at other data.
    """
    if look:
        if look["data"] != facts["data"]:
            raise UserError(
                f"{folder.path}: {HOW}, and it was taken on {look['time']} of other images, labels or groups"
            )
        return look["metrics"], 1
    new = {"time": now(), "weights": weights.kit["digest"], **facts}
    new |= {"overrides": given} if (given := deciding(overrides)) else {}
    return facts["metrics"], record_look(folder.path, new, is_sealed(folder))


def describe_number(num_looks: int | None, is_other: bool) -> str:
    if is_other:
        return "other data: this look is recorded, and not counted as one at the folder's test set"
    many = ": choose by validation metrics, not by these" if num_looks and num_looks > 3 else ""
    return f"look {num_looks} at this test set{many}"
