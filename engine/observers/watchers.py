"""All observers of a run together, with the probe for those that look into the net."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.observers import make_observers
from engine.observers.base import Observer
from engine.observers.probe import Probe

if TYPE_CHECKING:
    from pathlib import Path

    from engine.events import Epoch, Step
    from engine.loop import Run
    from engine.state import Row, State


class Watchers:
    """Passes the events of a run on to its observers. Without any that wants a look, nothing is hooked to the net."""

    def __init__(self, observers: Sequence[Observer], run: Run, state: State):
        self.observers = observers
        wants = self._wants()
        self.probe = Probe(run, state, wants) if wants else None

    @classmethod
    def make(cls, run: Run, state: State, folder: Path) -> Watchers:
        """The observers that params.json names. UserError for one that cannot be made. Writes nothing."""
        return cls(make_observers(run.params.observers, folder, run.params, state.step), run, state)

    def _wants(self) -> frozenset[str]:
        return frozenset().union(*(getattr(observer, "wants", ()) for observer in self.observers))

    def step(self, step: Step) -> None:
        for observer in self.observers:
            observer.step(step)
        if self.probe and (look := self.probe.look()):
            begun = time.monotonic()
            for observer in self.observers:
                if isinstance(observer, Observer):  # others have no `inside`
                    observer.inside(look)
            self.probe.wants = self._wants()
            self.probe.add_cost(time.monotonic() - begun)

    def epoch(self, epoch: Epoch, history: list[Row]) -> None:
        for observer in self.observers:
            observer.epoch(epoch, history)

    def close(self) -> None:
        if self.probe:
            self.probe.close()
        for observer in self.observers:
            observer.close()
