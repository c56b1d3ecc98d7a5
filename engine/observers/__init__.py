"""Observers watch a run: they get every Step and Epoch, and change nothing.

To add one: write a class that derives from Observer with any of its methods, and add a line to OBSERVERS.
"file.py:Name" in "observers" names an observer in the experiment folder.
"""

from __future__ import annotations

from pathlib import Path

from engine.observers.base import Observer
from engine.observers.live_plot import LivePlot
from engine.observers.monitors import Activations, Gradients, Updates
from engine.observers.steps import CsvSteps, System
from engine.observers.tensorboard import Graph, Histograms, TensorBoard
from engine.observers.trackers import MLflow, WandB
from params import Params
from utils import UserError, lookup

OBSERVERS: dict[str, type[Observer]] = {
    "tensorboard": TensorBoard,
    "live_plot": LivePlot,
    "activations": Activations,
    "gradients": Gradients,
    "updates": Updates,
    "histograms": Histograms,
    "graph": Graph,
    "csv_steps": CsvSteps,
    "system": System,
    "wandb": WandB,
    "mlflow": MLflow,
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
