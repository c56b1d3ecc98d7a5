"""What every observer has: it gets each Step and Epoch, may look into the net, and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.events import Epoch, Step
    from engine.state import Row
    from params import Params


@dataclass(frozen=True)
class LayerOutput:
    """The outputs of one layer for a batch of training images.

    A unit is a channel, or a feature of a linear layer. dead: the share of units that give the same value for every
    image, at every place; saturated: the share of values at an end of a bounded activation such as sigmoid, None for
    a layer that has no bounds.
    """

    mean: float
    std: float
    dead: float
    saturated: float | None


@dataclass(frozen=True)
class Inside:
    """A look into the net at one optimizer step. Everything in it is a copy: an observer cannot change the training.

    Empty is what no observer wants, and what the step did not have (a skipped update in fp16).
    """

    epoch: int
    step: int
    activations: Mapping[str, LayerOutput] = field(default_factory=dict)  # by layer, in the order of the forward pass
    gradients: Mapping[str, Tensor] = field(default_factory=dict)  # by parameter, as the optimizer got them: clipped
    weights: Mapping[str, Tensor] = field(default_factory=dict)  # by parameter, after the step
    updates: Mapping[str, Tensor] = field(default_factory=dict)  # by parameter: weights after the step less before it
    net: nn.Module | None = None  # in evaluation mode, on its device
    images: Tensor | None = None  # (B, 3, H, W): the micro-batch that the activations, or the net, are of


class Observer:
    """The base of all observers. The constructor writes nothing: the run may still be refused after it.

    folder: of the experiment; start_step: number of optimizer steps already taken when this start continues a run.
    wants: the fields of Inside that it asks for. Looking takes time, so a look is left out where the looks so far took
    more than 2 % of the run.
    """

    wants: Set[str] = frozenset()

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        self.folder = Path(folder)
        self.params = params
        self.start_step = start_step

    def step(self, step: Step) -> None:
        """Every `save_summary_steps` optimizer steps, and at the end of an epoch."""

    def inside(self, look: Inside) -> None:
        """After `step`, when any observer wants to look into the net."""

    def epoch(self, epoch: Epoch, history: list[Row]) -> None:
        """After each evaluation; `history` ends with the row of this epoch."""

    def close(self) -> None:
        """The run is over: done, interrupted or failed."""
