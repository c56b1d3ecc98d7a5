"""Observers watch a run: they get every Step and Epoch, and change nothing.

To add one: write a class that derives from Observer with any of its methods, and add a line to OBSERVERS.
"file.py:Name" in "observers" names an observer in the experiment folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from include import TENSORBOARD, TRAIN_HISTORY_PNG
from report.figures import save_history_figure
from utils import UserError, lookup, reference_name

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from engine.events import Epoch, Step
    from engine.state import Row
    from params import Params


class Observer:
    """The base of all observers. The constructor writes nothing: the run may still be refused after it.

    folder: of the experiment; start_step: number of optimizer steps already taken when this start continues a run.
    """

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        self.folder = Path(folder)
        self.params = params
        self.start_step = start_step

    def step(self, step: Step) -> None:
        """Every `save_summary_steps` optimizer steps, and at the end of an epoch."""

    def epoch(self, epoch: Epoch, history: list[Row]) -> None:
        """After each evaluation; `history` ends with the row of this epoch."""

    def close(self) -> None:
        """The run is over: done, interrupted or failed."""


class TensorBoard(Observer):
    """Events under tensorboard/: loss, learning rates and speed at each Step; metrics of both splits at each Epoch."""

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        super().__init__(folder, params, start_step)
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError('observers: "tensorboard" needs its package: pip install tensorboard, or leave it out')
        self._writer: SummaryWriter | None = None
        self._has_failed = False

    @property
    def writer(self) -> SummaryWriter:
        """Made at the first event."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Events after start_step are of an attempt that ended before it committed them: they come again.
            purge = self.start_step + 1 if self.start_step else None
            threading.excepthook = _hide_writer_error
            self._writer = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=purge)
        return self._writer

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Errors of the disk name the folder: tensorboard's do not say what could not be written."""
        try:
            yield
        except OSError as error:
            self._has_failed = True
            reason = error.strerror or str(error)
            raise OSError(error.errno, reason, str(self.folder / TENSORBOARD)) from None

    def step(self, step: Step) -> None:
        with self._named_errors():
            self._add_step(step)

    def _add_step(self, step: Step) -> None:
        self.writer.add_scalar("train/loss", step.loss, step.step)
        rates = {f"learning_rate/group_{n}": rate for n, rate in enumerate(step.learning_rate, start=1)}
        if len(set(step.learning_rate)) == 1:
            rates = {"learning_rate": step.learning_rate[0]}
        for name, rate in rates.items():
            self.writer.add_scalar(name, rate, step.step)
        self.writer.add_scalar("images_per_second", step.images_per_second, step.step)

    def epoch(self, epoch: Epoch, history: list[Row]) -> None:
        with self._named_errors():
            for key, value in epoch.row.items():
                split, _, name = key.partition("_")
                if split in ("train", "val") and key != "train_loss" and value is not None:
                    self.writer.add_scalar(f"{split}/{name}", value, epoch.step)
            self.writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with contextlib.suppress(OSError) if self._has_failed else self._named_errors():  # it is said once
                writer.close()


def _hide_writer_error(args: threading.ExceptHookArgs) -> None:
    """Print no traceback for tensorboard's writing thread on a full disk: the next event raises its error again."""
    if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(args)


class LivePlot(Observer):
    """train_history.png after each epoch, while drawing takes under 2 % of the time. The run draws the last one."""

    SHARE = 0.02  # of the time

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        super().__init__(folder, params, start_step)
        self.cost = 0.5  # seconds that the last drawing took; the first includes the import of matplotlib
        self.since = time.monotonic()  # the end of the last drawing

    def epoch(self, epoch: Epoch, history: list[Row]) -> None:
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
    """The observers that `names` lists. UserError for an unknown one, or one that cannot be made. Writes nothing."""
    observers: list[Observer] = []
    for name in dict.fromkeys(names):
        make = lookup(OBSERVERS, name, "observers", params.folder)
        try:
            observer = make(Path(folder), params, start_step)
        except TypeError as error:
            raise UserError(f"observers: {name} cannot be made with (folder, params, start_step): {error}") from None
        missing = [method for method in ("step", "epoch", "close") if not callable(getattr(observer, method, None))]
        if missing:
            raise UserError(f"observers: {name} has no method {missing[0]}(); derive it from engine.observers.Observer")
        observers.append(observer)
    return observers
