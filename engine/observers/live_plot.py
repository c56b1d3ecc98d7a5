"""The figure of the history, drawn while the run goes on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine.observers.base import Observer
from include import TRAIN_HISTORY_PNG
from report.figures import save_history_figure
from utils import reference_name

if TYPE_CHECKING:
    from engine.events import Epoch
    from engine.state import Row
    from params import Params


class LivePlot(Observer):
    """train_history.png after the first epoch, and then while drawing takes under 2 % of the time.

    The run draws the last one.
    """

    SHARE = 0.02  # of the time

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        super().__init__(folder, params, start_step)
        self.cost = 0.0  # seconds that the last drawing took; the first includes the import of matplotlib
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
