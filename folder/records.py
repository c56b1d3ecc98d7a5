"""What a folder says of its run before anything is decided: records and state that belong together, or a refusal."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from folder.arguments import Request
from folder.aside import find_half_moved
from folder.console import name_some
from folder.folder import Folder
from folder.identity import check_same
from folder.manifest import MANIFEST, digest_file, read_manifest
from folder.older_templates import explain_older_folder, has_known_params, is_of_another_kit
from folder.scratch import LINKED, check_owner
from include import (
    CHECKPOINTS,
    EXIT_DAMAGED,
    FOLD,
    HISTORY_CSV,
    HISTORY_JSON,
    META,
    METRICS_BEST,
    METRICS_LAST,
    METRICS_TEST,
    RESOLVED,
    WEIGHTS,
)
from utils import JsonObject, UserError, command

RESULTS = (HISTORY_JSON, METRICS_BEST, METRICS_LAST, METRICS_TEST)


def list_results(folder: Path) -> list[str]:
    """The results that are there, whoever wrote them: no new run may overwrite them."""
    names = [name for name in RESULTS if (folder / name).is_file()]
    return names + sorted(f"{WEIGHTS}/{path.name}" for path in (folder / WEIGHTS).glob("*") if path.is_file())


def digest_results(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the results of a run that has come to its end, to be recorded in record/meta.json."""
    names = [HISTORY_JSON, HISTORY_CSV, METRICS_BEST, METRICS_LAST, weights_file("best"), weights_file("last")]
    return {name: digest_file(folder / name) for name in names if (folder / name).is_file()}


def weights_file(which: str) -> str:
    return f"{WEIGHTS}/{which}.safetensors"


def find_changed_results(folder: Folder, names: Sequence[str] | None = None) -> list[str]:
    """Results of a run that is done which are not, or no longer, those that it recorded. `names`: look at these alone.

    Runs that go on, and those of versions that recorded no digests, have none.
    """
    done = folder.meta().get("done")
    digests = done.get("files", {}) if isinstance(done, dict) else {}
    if not digests or not read_progress(folder).get("done"):
        return []
    chosen = [name for name in digests if names is None or name in names]
    return [name for name in chosen if not is_file_with(folder.path / name, digests[name])]


def is_file_with(path: Path, digest: str) -> bool:
    return path.is_file() and digest_file(path) == digest


def read_progress(folder: Folder) -> JsonObject:
    """The manifest; of a run that is done and whose checkpoints were deleted, what its records say; else {}."""
    manifest = read_manifest(folder.path / CHECKPOINTS)
    if manifest or not list_results(folder.path):
        return manifest
    meta = folder.meta()
    done = meta.get("done") if "id" in meta else read_end_of_format_1(folder)
    if not (isinstance(done, dict) and {"num_epochs", "epoch"} <= done.keys()):
        return {}
    return {"done": True, "num_epochs": done["num_epochs"], "last": {"epoch": done["epoch"]}, "state_is_gone": True}


def read_end_of_format_1(folder: Folder) -> JsonObject | None:
    """How far a run of format 1 came that says it is done; None for any other."""
    rows = folder.history()
    if folder.status()["state"] != "done" or not rows or not (folder.path / RESOLVED).exists():
        return None
    epoch = rows[-1]["epoch"]
    return {"num_epochs": max(folder.resolved()["num_epochs"], epoch), "epoch": epoch}


def read_run(folder: Folder, request: Request, restart_words: Sequence[str]) -> tuple[JsonObject, JsonObject]:
    """record/meta.json and the manifest of the checkpoints; no manifest when the run is to be started over.

    UserError (exit 3), with the ways out, when records and state are damaged or do not belong together, and when
    there are results without their state. `restart_words`: the command line, to suggest variations of.
    """
    # Starting over moves everything aside, damaged or not; what a killed --restart left is moved, too.
    half_moved = find_half_moved(folder.path)
    if request.restart or half_moved:
        return read_old_meta(folder, half_moved), {}
    # Results without state are moved aside when the run starts from weights; a range test changes nothing.
    start_over = f"start over (what is there moves to attempts/): {command(*restart_words, '--restart')}"
    try:
        meta = folder.meta()
        manifest = read_progress(folder)
        if manifest:
            check_agreement(folder.path, meta, manifest)
        check_owner(folder.path, meta)
    except UserError as damaged:
        raise UserError(f"{damaged}. Bring the file back, or {start_over}", EXIT_DAMAGED) from None
    if not manifest and not (request.restore_file or request.trial):
        check_state(folder.path, restart_words, start_over, request.data_dir or "DATA")
    return meta, manifest


def read_old_meta(folder: Folder, half_moved: Path | None) -> JsonObject:
    """record/meta.json of the attempt that is moved aside, {} when it is damaged; `half_moved`: it may be there."""
    for place in (folder, *([Folder(half_moved)] if half_moved else [])):
        with contextlib.suppress(UserError):
            if meta := place.meta():
                return meta
    return {}


def check_agreement(folder: Path, meta: JsonObject, manifest: JsonObject) -> None:
    """UserError (exit 3) unless manifest and records are of one folder and one attempt."""
    if not meta:
        raise UserError(f"{folder / META} is missing", EXIT_DAMAGED)
    if not (folder / RESOLVED).exists():
        raise UserError(f"{folder / RESOLVED} is missing", EXIT_DAMAGED)
    reader = Folder(folder)
    if not manifest.get("state_is_gone"):
        check_same(folder / CHECKPOINTS / MANIFEST, manifest, meta)
    for name in (RESOLVED, FOLD):
        if (folder / name).exists():
            check_same(folder / name, reader.record(name), meta)


def check_state(folder: Path, words: Sequence[str], start_over: str, data_dir: str) -> None:
    """UserError (exit 3) when there are results, or links to a scratch disk, but not the state that they came from."""
    gone = [folder / name for name in LINKED if (folder / name).is_symlink() and not (folder / name).exists()]
    results = list_results(folder)
    if not (results or gone):
        return
    if is_of_another_kit(folder):
        restart = f"   or {start_over}" if has_known_params(folder) else ""
        raise UserError(explain_older_folder(folder, data_dir) + restart, EXIT_DAMAGED)
    # what is missing
    names = name_some(results, 3)
    if gone:
        reason = f"{gone[0]} links to {os.readlink(gone[0])}, which is gone: bring that disk back"
    else:
        reason = f"{folder} holds results ({names}) but no state of the run that made them; not touched"
    # what can be done
    weights = (folder / WEIGHTS / "best.safetensors").is_file()
    ways = f"   or start from the weights: {command(*words, '--restore_file', 'best')}" if weights else ""
    raise UserError(f"{reason}. Otherwise {start_over}{ways}", EXIT_DAMAGED)
