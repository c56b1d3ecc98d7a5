"""What train.py can do with a run instead of training it to its end: each builds, looks and stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.use.trials.doctor import doctor
from engine.use.trials.find_lr import find_lr
from engine.use.trials.overfit import overfit

if TYPE_CHECKING:
    from engine.loop import Run
    from engine.plan import Plan
    from engine.state import State
    from folder.arguments import Request

Trial = Callable[["Plan", "Run", "State"], str]


def find_trial(request: Request) -> Trial | None:
    """The function of the flag that was given: (plan, run, state) -> the text to print. None to train."""
    if request.find_lr:
        return find_lr
    if request.doctor:
        return doctor
    return overfit if request.overfit is not None else None
