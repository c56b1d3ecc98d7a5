"""What train.py prints when it has finished."""

from pathlib import Path
from typing import Protocol

from folder.folder import Folder
from folder.manifest import read_manifest
from include import CHECKPOINTS, HISTORY_CSV, METRICS_BEST, RESOLVED, TENSORBOARD, TRAIN_HISTORY_PNG
from utils import JsonObject, command, to_json


class Described(Protocol):
    """The part of a loader that this module needs."""

    @property
    def description(self) -> str: ...


class Prepared(Protocol):
    """The part of a run that this module needs."""

    @property
    def train_loader(self) -> Described: ...

    @property
    def valid_loader(self) -> Described: ...

    @property
    def weights_report(self) -> object: ...


def closing_block(folder: Folder, data_dir: Path) -> str:
    """The best epoch, where its files are, and the commands that come next."""
    best, history, path = folder.read(METRICS_BEST, {}), folder.history(), folder.path
    values = ", ".join(f"{name} {value:.4f}" for name, value in best.items() if name != "epoch" and value is not None)
    splits = folder.meta().get("splits")  # of an earlier version's folder: none
    has_test = "test" in splits if splits else (data_dir / "test").is_dir()
    split = [] if has_test else ["--split", "valid"]
    manifest = read_manifest(path / CHECKPOINTS)
    kept = [Path(entry["file"]) for entry in manifest.get("epochs", [])]
    resolved = folder.read(RESOLVED, {})
    first = resolved.get("num_epochs", 0)
    added = max(0, manifest.get("num_epochs", first) - first)  # --extend counts from the epochs first asked for
    has_events = "tensorboard" in resolved.get("observers", [])
    further = ["--extend", f"{added + 5:g}"]
    lines = [
        f"best epoch {best.get('epoch')} of {history[-1]['epoch'] if history else 0}: {values}",
        f"weights   {folder.weights('best')}",
        f"kept      {path / CHECKPOINTS / kept[0]} to {kept[-1]}: train.py --restore_file takes one"
        if len(kept) > 1
        else "",
        f"curves    {path / TRAIN_HISTORY_PNG}   table {path / HISTORY_CSV}",
        f"          {command('tensorboard', '--logdir', path / TENSORBOARD)}" if has_events else "",
        f"evaluate  {command('python', 'evaluate.py', '--data_dir', data_dir, '--model_dir', path, *split)}",
        f"predict   {command('python', 'predict.py', '--model_dir', path)} IMAGE_OR_FOLDER",
        f"continue  {command('python', 'train.py', '--data_dir', data_dir, '--model_dir', path, *further)}",
        f"compare   {command('python', 'synthesize_results.py', '--parent_dir', path.parent)}",
    ]
    return "\n".join(filter(None, lines))


def run_result(folder: Folder) -> JsonObject:
    """What --json prints: status, metrics of the best epoch, paths."""
    return {"status": folder.status(), "best": folder.read(METRICS_BEST), "weights": str(folder.weights("best"))}


def describe_prepared(run: Prepared, as_json: bool) -> str:
    """What --prepare prints: a line for each part that is ready."""
    parts = {"train": run.train_loader.description, "valid": run.valid_loader.description}
    parts |= {"weights": str(run.weights_report)} if run.weights_report else {}
    return to_json(parts) if as_json else "\n".join([*parts.values(), "prepared; the folder is as it was\n"])
