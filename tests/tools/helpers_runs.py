"""Folders as train.py and the search leave them, without the training: for tables, figures and pages of many runs."""

import json
import math
from pathlib import Path
from typing import Any


def make_history(num_epochs: int, best: float) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(1, num_epochs + 1):
        accuracy = best * (1 - math.exp(-3 * epoch / num_epochs))
        row = {"epoch": epoch, "step": 10 * epoch, "learning_rate": 0.1 / epoch, "train_loss": 2 / epoch}
        row |= {"train_accuracy": accuracy * 0.9, "val_loss": 2.2 / epoch, "val_accuracy": accuracy}
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
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(value))
    return path
