"""Experiment folders as train.py, evaluate.py and a search leave them, without the training.

For tests of tables, statistics, figures and pages, which only read folders.
"""

import json
import math
from pathlib import Path
from typing import Any


def write(path: Path, value: object) -> None:
    """Write a string as it is and anything else as JSON; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def make_history(num_epochs: int, best: float = 0.9, **more: float | None) -> list[dict[str, Any]]:
    """The rows of history.json: `val_accuracy` rises to 95 % of `best`; `more` is added to every row."""
    rows = []
    for epoch in range(1, num_epochs + 1):
        accuracy = best * (1 - math.exp(-3 * epoch / num_epochs))
        row = {"epoch": epoch, "step": 10 * epoch, "learning_rate": 0.1 / epoch, "train_loss": 2 / epoch}
        row |= {"train_accuracy": accuracy * 0.9, "val_loss": 2.2 / epoch, "val_accuracy": accuracy, **more}
        rows.append(row | {"seconds": 1.5, "images_per_second": 100.0})
    return rows


def make_run(
    path: Path, accuracy: float, state: str = "done", epochs: int = 5, message: str = "", **params: Any
) -> Path:
    """One experiment folder whose best validation accuracy is `accuracy`."""
    resolved = {"arch": "lenet", "learning_rate": 0.1, "seed": 0, "best_metric": "accuracy", "arch_args": {}} | params
    history = make_history(epochs, accuracy)
    files: dict[str, Any] = {
        "params.json": params,
        "record/resolved.json": resolved | {"pinned": {"classes": ["a", "b"]}},
        "record/meta.json": {"data_dir": "data/digits", "minimize": ["loss"], "command": ["train.py"]},
        "record/status.json": {"state": state, "epoch": epochs, "step": 10 * epochs, "message": message},
        "history.json": history,
        "metrics_val_best_weights.json": {"epoch": epochs, "loss": 1 - accuracy, "accuracy": accuracy},
        "metrics_val_last_weights.json": {"epoch": epochs, "loss": 1 - accuracy, "accuracy": accuracy},
    }
    for name, value in files.items():
        write(path / name, value)
    return path


def make_folder(
    path: Path, accuracy: float, status: dict[str, Any] | None = None, test: float | None = None, **params: Any
) -> Path:
    """A folder of three epochs as train.py and evaluate.py leave it; with `test`, the test split was looked at twice."""
    resolved = {"arch": "lenet", "learning_rate": 0.1, "best_metric": "accuracy", "arch_args": {}} | params
    write(path / "params.json", {})
    write(path / "record/resolved.json", resolved | {"pinned": {"classes": ["a", "b"]}})
    write(path / "record/meta.json", {"data_dir": "data/digits"})
    write(path / "record/status.json", {"state": "done", "epoch": 3, "step": 30, "message": ""} | (status or {}))
    write(path / "history.json", make_history(3, accuracy))
    write(path / "metrics_val_best_weights.json", {"epoch": 3, "loss": 1 - accuracy, "accuracy": accuracy})
    if test is not None:
        write(path / "metrics_test_best.json", {"epoch": 3, "loss": 0.5, "accuracy": test})
        write(path / "record/test_looks.jsonl", '{"n": 1}\n{"n": 2}\n')
    return path
