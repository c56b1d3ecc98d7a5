"""Observers watch a run: they see every Step and Epoch and change nothing.

Add one: a class with any of the methods of Observer, and a line in OBSERVERS. "file.py:Name" in "observers"
names one of the experiment's own.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include import TENSORBOARD, TRAIN_HISTORY_PNG
from report.figures import save_history_figure
from utils import UserError, lookup, reference_name

if TYPE_CHECKING:
    from engine.loop import Epoch, Step
    from params import Params


class Observer:
    """Sees a run go by. It writes nothing before the first event, and may be made before the run is sure.

    folder: of the experiment; start_step: optimizer steps already taken when this start continues a run.
    """

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        self.folder, self.params, self.start_step = Path(folder), params, start_step

    def step(self, step: Step) -> None:
        """Every `save_summary_steps` optimizer steps, and at the end of an epoch."""

    def epoch(self, epoch: Epoch, history: list[dict[str, Any]]) -> None:
        """After each evaluation; `history` ends with the row of this epoch."""

    def close(self) -> None:
        """The run is over: done, interrupted or failed."""


class TensorBoard(Observer):
    """Events under tensorboard/: at a Step loss, rates and speed; at an Epoch metrics and validation."""

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        super().__init__(folder, params, start_step)
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError('observers: "tensorboard" needs its package: pip install tensorboard, or leave it out')
        self._writer: Any = None

    @property
    def writer(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Events after start_step are of an attempt that did not get to its commit: they come again.
            purge = self.start_step + 1 if self.start_step else None
            self._writer = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=purge)
        return self._writer

    def step(self, step: Step) -> None:
        self.writer.add_scalar("train/loss", step.loss, step.step)
        rates = {f"learning_rate/group_{n}": rate for n, rate in enumerate(step.learning_rate, start=1)}
        if len(set(step.learning_rate)) == 1:
            rates = {"learning_rate": step.learning_rate[0]}
        for name, rate in rates.items():
            self.writer.add_scalar(name, rate, step.step)
        self.writer.add_scalar("images_per_second", step.images_per_second, step.step)

    def epoch(self, epoch: Epoch, history: list[dict[str, Any]]) -> None:
        for key, value in epoch.row.items():
            split, _, name = key.partition("_")
            if split in ("train", "val") and key != "train_loss" and value is not None:
                self.writer.add_scalar(f"{split}/{name}", value, epoch.step)
        self.writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class LivePlot(Observer):
    """train_history.png after each epoch, while drawing takes under 2 % of the time; the last one comes without it."""

    SHARE = 0.02

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        super().__init__(folder, params, start_step)
        self.cost = 0.5  # seconds per drawing; the first includes the import of matplotlib
        self.since = time.monotonic()

    def epoch(self, epoch: Epoch, history: list[dict[str, Any]]) -> None:
        begun = time.monotonic()
        if self.cost > self.SHARE * (begun - self.since):
            return
        best_epoch = epoch.best["epoch"] if epoch.best else None
        metric = reference_name(self.params.best_metric)
        save_history_figure(self.folder / TRAIN_HISTORY_PNG, history, metric, best_epoch)
        self.since = time.monotonic()
        self.cost = self.since - begun


OBSERVERS: dict[str, type[Observer]] = {
    "tensorboard": TensorBoard,
    "live_plot": LivePlot,
}


def make_observers(names: list[str], folder: Path, params: Params, start_step: int = 0) -> list[Observer]:
    """The observers by name. UserError for an unknown one, or one that cannot be made. Writes nothing."""
    observers = []
    for name in dict.fromkeys(names):
        made = lookup(OBSERVERS, name, "observers", params.folder)
        try:
            observer = made(Path(folder), params, start_step)
        except TypeError as error:
            raise UserError(f"observers: {name} cannot be made with (folder, params, start_step): {error}") from None
        missing = [method for method in ("step", "epoch", "close") if not callable(getattr(observer, method, None))]
        if missing:
            raise UserError(f"observers: {name} has no method {missing[0]}(); derive it from engine.observers.Observer")
        observers.append(observer)
    return observers
