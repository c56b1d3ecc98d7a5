"""What goes on inside the net, as tables under monitors/: activations, gradients and updates, by layer."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING

from engine.observers.base import Inside, Observer
from engine.observers.table import Table
from include import MONITORS

if TYPE_CHECKING:
    from params import Params

Cells = Mapping[str, object]


class Monitor(Observer):
    """Writes monitors/NAME.csv: one row for each layer or parameter at each look."""

    name = ""

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        super().__init__(folder, params, start_step)
        self.table = Table(self.folder / MONITORS / f"{self.name}.csv", start_step)

    def inside(self, look: Inside) -> None:
        place = {"step": look.step, "epoch": look.epoch}
        self.table.add([place | dict(row) for row in self.rows(look)])

    def rows(self, look: Inside) -> list[Cells]:
        raise NotImplementedError


class Activations(Monitor):
    """monitors/activations.csv: mean and std of every layer's outputs, shares of dead units and saturated values."""

    name = "activations"
    wants: Set[str] = frozenset({"activations"})

    def rows(self, look: Inside) -> list[Cells]:
        return [{"layer": name, **vars(output)} for name, output in look.activations.items()]


class Gradients(Monitor):
    """monitors/gradients.csv: norm and largest value of every parameter's gradient, as the optimizer got it."""

    name = "gradients"
    wants: Set[str] = frozenset({"gradients"})

    def rows(self, look: Inside) -> list[Cells]:
        return [
            {"parameter": name, "norm": gradient.norm().item(), "max": gradient.abs().max().item()}
            for name, gradient in look.gradients.items()
        ]


class Updates(Monitor):
    """monitors/updates.csv: norm of every parameter and of its update, and their ratio: 1e-3 is a usual value."""

    name = "updates"
    wants: Set[str] = frozenset({"updates", "weights"})

    def rows(self, look: Inside) -> list[Cells]:
        rows = []
        for name, update in look.updates.items():
            weight, change = look.weights[name].norm().item(), update.norm().item()
            rows.append({"parameter": name, "weight": weight, "update": change, "ratio": change / max(weight, 1e-12)})
        return rows
