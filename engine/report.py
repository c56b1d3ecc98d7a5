"""Experiment folders -> rows. Reads only; needs no torch. From rows to tables: engine/tables.py."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.folder import Folder
from engine.lock import is_alive
from include import (
    ATTEMPTS,
    CHECKPOINTS,
    META,
    METRICS_BEST,
    METRICS_TEST,
    PARAMS,
    RECORD,
    RESOLVED,
    STATUS,
    TENSORBOARD,
    TEST_LOOKS,
    WEIGHTS,
)
from utils import UserError

OF_THE_KIT = {RECORD, ATTEMPTS, CHECKPOINTS, TENSORBOARD, WEIGHTS}
NOT_COMPARED = {"data_dir", "hyper_search", "search"}
REPLICATES = ("seed", "fold")  # runs that differ in these alone measure the same thing


@dataclass(frozen=True)
class Row:
    """What one experiment folder says."""

    name: str
    params: dict[str, Any]  # what ran, by dotted name
    best: dict[str, Any]  # epoch, loss and metrics of the best weights on the validation split
    test: dict[str, Any]  # the same on the test split, {} when nobody looked
    num_looks: int
    history: list[dict[str, Any]]
    status: str
    minimized: frozenset[str]  # metrics of which less is better

    @property
    def best_metric(self) -> str:
        return str(self.params.get("best_metric", "accuracy")).rpartition(":")[2]

    @property
    def seconds(self) -> float:
        return sum(row.get("seconds") or 0 for row in self.history)


# --- folders -> rows ------------------------------------------------------------------------------------


def natural(text: str) -> list[Any]:
    """A sorting key: "run_2" before "run_10"."""
    return [(0, float(part), "") if part[:1].isdigit() else (1, 0.0, part) for part in re.split(r"(\d+)", text) if part]


def find_folders(parent: Path) -> list[Path]:
    """The experiment folders in the tree under `parent`, without those that only hold others (a search)."""
    if not parent.is_dir():
        raise UserError(f"{parent}: no such folder")
    found = []
    for current, names, files in os.walk(parent):
        path = Path(current)
        is_experiment = PARAMS in files or (path / STATUS).is_file() or (path / RESOLVED).is_file()
        if is_experiment:
            found.append(path)
        skip = OF_THE_KIT if is_experiment else set()
        names[:] = [name for name in names if name not in skip and not name.startswith((".", "__"))]
    holders = {above for path in found for above in path.parents}
    found = [path for path in found if path not in holders or (path / RESOLVED).exists()]
    return sorted(found, key=lambda path: natural(str(path)))


def read_rows(folders: Iterable[Path], parent: Path | None = None) -> tuple[list[Row], dict[str, str]]:
    """(rows of the folders that have results, name -> what is the matter with one not done). Never fatal."""
    rows: list[Row] = []
    problems: dict[str, str] = {}
    for path in folders:
        name = str(path.relative_to(parent)) if parent and path != parent else str(path)
        try:
            remark = state_remark(path)
            if (path / METRICS_BEST).exists():
                rows.append(read_row(path, name))
            elif not remark:
                remark = f"malformed: done, but there is no {METRICS_BEST}"
        except UserError as error:
            remark = f"malformed: {error}"
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            remark = f"malformed: {type(error).__name__}: {error}"
        if remark:
            problems[name] = remark
    return rows, problems


def read_row(path: Path, name: str) -> Row:
    """The row of one folder. UserError, or whatever a file of another shape causes."""
    folder = Folder(path)
    resolved, meta = folder.record(RESOLVED), folder.record(META)
    if not resolved:
        raise UserError(f"{path / RESOLVED}: no such file")
    params = flatten({key: value for key, value in resolved.items() if key != "pinned" and key not in NOT_COMPARED})
    if meta.get("data_dir"):
        params["data"] = Path(meta["data_dir"]).name
    looks = path / TEST_LOOKS
    return Row(
        name=name,
        params=params,
        best=numbers(folder.read(METRICS_BEST), path / METRICS_BEST),
        test=numbers(folder.read(METRICS_TEST, {}), path / METRICS_TEST),
        num_looks=count_looks(looks),
        history=[dict(row) for row in folder.history()],
        status=status_of(path),
        minimized=frozenset(["loss", *(meta.get("minimize") or [])]),
    )


def count_looks(path: Path) -> int:
    """Lines of record/test_looks.jsonl."""
    if not path.exists():
        return 0
    return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())


def numbers(values: Any, path: Path) -> dict[str, Any]:
    """`values` when it is a flat table name -> number or null. UserError otherwise."""
    good = isinstance(values, dict) and all(
        value is None or isinstance(value, int | float) for value in values.values()
    )
    if not good:
        raise UserError(f"{path}: a flat table of numbers is expected")
    return values


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def status_of(path: Path) -> str:
    """created, running, killed (it says running, but its process is gone), interrupted, failed or done. UserError."""
    status = Folder(path).status()
    state = str(status["state"])
    if state == "unknown":
        raise UserError(status["message"])
    if state != "running" or status.get("host") != socket.gethostname():
        return state
    return state if is_alive(int(status["pid"])) else "killed"


def state_remark(path: Path) -> str:
    """What keeps a folder from being done, "" when it is."""
    state, status = status_of(path), Folder(path).status()
    where = f"epoch {status.get('epoch', 0)}, step {status.get('step', 0)}"
    message = " ".join(str(status.get("message", "")).split())
    match state:
        case "done":
            return ""
        case "created":
            return "not trained yet"
        case "running" | "killed":
            return f"{state} at {where}"
        case _:
            return f"{state} at {where}" + (f": {message}" if message else "")


# --- rows beside each other ----------------------------------------------------------------------------


def differing(rows: Sequence[Row]) -> list[str]:
    """The parameters that are not the same in all rows."""
    keys = dict.fromkeys(key for row in rows for key in row.params)
    return [key for key in keys if len({json.dumps(row.params.get(key), sort_keys=True) for row in rows}) > 1]


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows whose parameters differ in seed or fold alone, together, in the order of the first of each."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        rest = {key: value for key, value in row.params.items() if key not in REPLICATES}
        groups.setdefault(json.dumps(rest, sort_keys=True), []).append(row)
    return list(groups.values())


def label(row: Row, keys: Sequence[str]) -> str:
    """What tells a run from the others, for a legend; its folder's name when that is too much to say."""
    text = ", ".join(f"{key} {show(row.params.get(key))}" for key in keys)
    return text if text and len(text) <= 90 else row.name


def show(value: Any) -> str:
    """A parameter as people write it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
