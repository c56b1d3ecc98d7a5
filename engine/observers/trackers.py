"""Weights & Biases and MLflow: the same numbers as in the history, in their own stores.

Which run of theirs it is follows from the ids of the experiment folder: a continued run continues there, and a copy, or
a run that was restarted, is another. Where the data goes is theirs to say (WANDB_MODE, MLFLOW_TRACKING_URI, ...).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.observers.base import Observer
from include import META
from report.rows import flatten
from utils import UserError, read_json

if TYPE_CHECKING:
    from engine.events import Epoch, Step
    from engine.state import Row
    from params import Params


class Tracker(Observer):
    """What both have in common: the run is opened at the first event, and the kit's numbers are sent by step."""

    package = ""

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        super().__init__(folder, params, start_step)
        if importlib.util.find_spec(self.package) is None:
            raise UserError(f'observers: "{self.package}" needs its package: pip install {self.package}')
        self.is_open = False

    def step(self, step: Step) -> None:
        self._send({"train/loss": step.loss, "images_per_second": step.images_per_second}, step.step)

    def epoch(self, epoch: Epoch, history: list[Row]) -> None:
        values = {"epoch": float(epoch.epoch)}
        for key, value in epoch.row.items():
            split, _, name = key.partition("_")
            if split in ("train", "val") and isinstance(value, int | float):
                values[f"{split}/{name}" if key != "train_loss" else "train/epoch_loss"] = value
        self._send(values, epoch.step)

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._end()

    def run_id(self) -> str:
        """32 hex digits that the ids of the folder and of its attempt give."""
        meta = read_json(self.folder / META)
        return hashlib.blake2b(f"{meta['id']} {meta['attempt']}".encode(), digest_size=16).hexdigest()

    def _send(self, values: dict[str, float], step: int) -> None:
        if not self.is_open:
            self._begin()
            self.is_open = True
        self._log(values, step)

    def _begin(self) -> None:
        raise NotImplementedError

    def _log(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


class WandB(Tracker):
    """A run of Weights & Biases; its files are in wandb/ of the folder."""

    package = "wandb"

    def _begin(self) -> None:
        wandb: Any = importlib.import_module(self.package)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "experiment-folders"),
            id=self.run_id(),
            name=self.folder.resolve().name,
            dir=str(self.folder),
            config=self.params.resolved(),
            resume="allow",
        )

    def _log(self, values: dict[str, float], step: int) -> None:
        self.run.log({**values, "step": step}, step=step)

    def _end(self) -> None:
        self.run.finish()


class MLflow(Tracker):
    """A run of MLflow, found again by its tag "experiment_folder"."""

    package = "mlflow"

    def _begin(self) -> None:
        mlflow: Any = importlib.import_module(self.package)
        self.client = mlflow.tracking.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "experiment-folders")
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        tag = self.run_id()
        runs = self.client.search_runs([experiment], f"tags.experiment_folder = '{tag}'")
        if runs:
            self.id = runs[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            return
        tags = {"experiment_folder": tag, "mlflow.runName": self.folder.resolve().name}
        self.id = self.client.create_run(experiment, tags=tags).info.run_id
        for key, value in flatten(self.params.resolved()).items():
            self.client.log_param(self.id, key, value)

    def _log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.id, name.replace("/", "."), value, step=step)

    def _end(self) -> None:
        self.client.set_terminated(self.id)
