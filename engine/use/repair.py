"""Check the files derived from the committed state (history, metrics, exported weights), and rewrite damaged ones.

Importing this module imports no torch: for a folder that is done and whole, train.py answers at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from folder.folder import Folder
from folder.history import best_row, history_csv, recorded_minimized
from folder.records import find_changed_results, read_progress
from include import EXIT_DAMAGED, HISTORY_CSV, METRICS_BEST, METRICS_LAST, TRAIN_HISTORY_PNG
from utils import UserError, reference_name

if TYPE_CHECKING:
    from engine.checkpoint import Checkpoints, Entry
    from engine.state import Row


def is_whole(folder: Folder) -> bool:
    """True when a finished folder says that it is done, and its results are whole."""
    return folder.status()["state"] == "done" and has_whole_results(folder)


def has_whole_results(folder: Folder) -> bool:
    """True when no derived file is missing, cut off, or not what the run recorded at its end."""
    try:
        if find_changed_results(folder):
            return False
        history = folder.history()
        tables = (folder.path / HISTORY_CSV).read_text() == history_csv(history)
        metrics = all("epoch" in folder.read(name) for name in (METRICS_BEST, METRICS_LAST)) if history else True
        return tables and metrics and all(has_promised_length(folder.weights(which)) for which in ("best", "last"))
    except (UserError, OSError, TypeError, ValueError, KeyError):
        return False


def has_promised_length(path: Path) -> bool:
    """True when a safetensors file has the length that its header promises."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return path.stat().st_size == 8 + length + max(ends)


def repair(folder: Folder) -> list[str]:
    """Complete what a finished run left undone when it was killed, or lost since. Returns remarks for the user."""
    remarks = [] if has_whole_results(folder) else rewrite_results(folder)
    if folder.status()["state"] != "done":
        end_history(folder)
    return remarks


def end_history(folder: Folder) -> None:
    """Draw the last figure and write in status.json that the run is done, as its process did not live to do."""
    from report.figures import save_history_figure

    history = folder.history()
    metric = reference_name(folder.resolved()["best_metric"])
    if best := best_row(history, metric, recorded_minimized(folder.meta())):
        save_history_figure(folder.path / TRAIN_HISTORY_PNG, history, metric, best["epoch"])
    last = read_progress(folder)["last"]
    folder.write_status("done", **{key: last[key] for key in ("epoch", "step") if key in last})


def rewrite_results(folder: Folder) -> list[str]:
    """Rewrite the derived files of a finished run from its state. Returns remarks for the user."""
    from engine.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder.path)
    manifest = checkpoints.manifest()
    if not manifest:
        raise UserError(
            f"{folder.path} is done, but its history, metrics or weights are damaged or missing, and so is the state: "
            "bring them back, or add --restart (what is there moves to attempts/)",
            EXIT_DAMAGED,
        )
    state = checkpoints.read(manifest["last"])
    remarks = write_derived(folder, state["history"], state["epoch"])
    return [
        *remarks,
        f"{folder.path}: history, metrics or weights were damaged or missing; they are written again from the state",
    ]


def write_derived(folder: Folder, history: list[Row], epoch: int) -> list[str]:
    """Write history, metrics and exported weights of the state that has `history` and `epoch`. Returns remarks.

    A damaged state of an epoch that will not be trained again is a remark as long as its exported weights are whole;
    UserError (exit 3) when they are lost too.
    """
    from engine.checkpoint import Checkpoints

    resolved = folder.resolved()
    best = best_row(history, reference_name(resolved["best_metric"]), recorded_minimized(folder.meta()))
    # Weights: of the best epoch, and of the last one that has ended.
    checkpoints = Checkpoints(folder.path)
    manifest = checkpoints.manifest()
    ended = manifest["epochs"] or [entry for entry in [manifest["last"]] if entry["file"].startswith("epoch_")]
    remarks = []
    for which, entry in (("best", manifest["best"]), ("last", ended[-1] if ended else None)):
        if entry:
            remarks += export_weights(folder, which, checkpoints, entry, epoch)
    # History and metrics, after the weights that they are of.
    folder.derive(history, best)
    return remarks


def export_weights(folder: Folder, which: str, checkpoints: Checkpoints, entry: Entry, epoch: int) -> list[str]:
    """Write weights/`which` from the state that `entry` names; see write_derived for damaged ones. Returns remarks."""
    from engine.checkpoint import read_weights, weights_file, weights_metadata

    try:
        state = checkpoints.read(entry)
    except UserError as damaged:
        if entry["epoch"] > epoch:  # this epoch will be trained again
            return []
        read_weights(folder.weights(which))  # UserError when they are damaged too
        return [f"{damaged}; {folder.weights(which)} is whole and stays"]
    folder.write_weights(which, weights_file(state["ema"] or state["net"], weights_metadata(folder.resolved())))
    return []
