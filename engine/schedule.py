"""Learning-rate shapes: pure functions of the optimizer step, so resuming needs the step and nothing else.

A shape maps a step in [0, total) to a multiplier of each layer group's `initial_lr`. What depends on
the past (plateau, early stopping) is a pure function of the history.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from folder.history import is_minimized, monitored_column, split_column
from params import Params

Shape = Callable[[int], float]


@dataclass(frozen=True)
class Schedule:
    """`multiplier`: step -> factor of the initial rate; `momentum`: step -> SGD's momentum, or None: constant."""

    multiplier: Shape
    momentum: Shape | None = None
    plateau: bool = False


def num_steps(epochs: float, steps_per_epoch: int) -> int:
    """A duration in epochs (may be fractional) as optimizer steps, at least one."""
    return max(1, round(epochs * steps_per_epoch))


def is_time(step: int, every: int, total: int) -> bool:
    """True after every `every`-th step and after the last one."""
    return step % every == 0 or step == total


# --- shapes -----------------------------------------------------------------------------------------


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def _two_phases(total: int, pct_start: float, low: float, high: float, final: float) -> Shape:
    """low -> high over `pct_start` of the steps, then -> final, both along half a cosine."""
    peak, last = pct_start * total - 1, total - 1

    def shape(step: int) -> float:
        if step <= peak:
            return _cosine(low, high, step / peak if peak else 1.0)
        return _cosine(high, final, (step - peak) / (last - peak) if last > peak else 1.0)

    return shape


def one_cycle(params: Params, total: int, warm: int) -> Shape:
    """1/div_factor -> 1 -> 1/(div_factor * 1e4): torch's OneCycleLR (Smith & Topin, arXiv:1708.07120)."""
    low = 1 / params.div_factor
    return _two_phases(total, params.pct_start, low, 1.0, low / 1e4)


def cosine(params: Params, total: int, warm: int) -> Shape:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter, arXiv:1608.03983)."""
    return lambda step: _cosine(1.0, 0.0, (step - warm) / max(1, total - warm))


def linear(params: Params, total: int, warm: int) -> Shape:
    """A straight line from 1 to 0."""
    return lambda step: 1.0 - (step - warm) / max(1, total - warm)


def step_decay(params: Params, total: int, warm: int) -> Shape:
    """A tenth after 50 % and again after 75 % of the steps (He et al., arXiv:1512.03385, section 4.2)."""
    return lambda step: 0.1 ** ((step >= total * 0.5) + (step >= total * 0.75))


def constant(params: Params, total: int, warm: int) -> Shape:
    """Always 1 (also under `plateau`, whose factor comes from the history)."""
    return lambda step: 1.0


SCHEDULERS: dict[str, Callable[[Params, int, int], Shape]] = {
    "one_cycle": one_cycle,
    "cosine": cosine,
    "linear": linear,
    "step": step_decay,
    "constant": constant,
    "plateau": constant,
}


def piecewise(pieces: Sequence[Sequence[float]], steps_per_epoch: int) -> Shape:
    """[[3, 0.1], [100, 0.01]]: 0.1 until epoch 3, then 0.01; the last rate holds on. Absolute rates."""
    ends = [(round(until * steps_per_epoch), rate) for until, rate in pieces]
    return lambda step: next((rate for end, rate in ends if step < end), ends[-1][1])


def with_warmup(shape: Shape, warm: int) -> Shape:
    """`shape`, its first `warm` steps replaced by a straight line up to its value there."""
    return lambda step: shape(warm) * (step + 1) / (warm + 1) if step < warm else shape(step)


def with_extension(shape: Shape, start: int, end: int, peak: float = 1.0) -> Shape:
    """`shape` up to `start`, then a cosine from a tenth of `peak` to zero at `end`."""
    return lambda step: _cosine(0.1 * peak, 0.0, (step - start) / max(1, end - start)) if step >= start else shape(step)


def make_schedule(
    params: Params, total: int, steps_per_epoch: int, extensions: Sequence[Sequence[int]] = ()
) -> Schedule:
    """The schedule that `params` asks for over `total` steps, then one cosine tail per [start, end) extension."""
    is_cycle = params.scheduler == "one_cycle" and not params.lr_schedule
    warm = 0 if is_cycle or params.lr_schedule else round(params.warmup * steps_per_epoch)
    peak = 1.0
    if params.lr_schedule:
        shape = piecewise(params.lr_schedule, steps_per_epoch)
        peak = max(rate for _, rate in params.lr_schedule)
    else:
        shape = with_warmup(SCHEDULERS[params.scheduler](params, total, warm), warm)
    momentum = None
    if is_cycle and params.optimizer == "sgd" and params.momentum:
        high, low = min(params.momentum + 0.05, 0.999), max(params.momentum - 0.05, 0.0)
        momentum = _two_phases(total, params.pct_start, high, low, high)
    for start, end in extensions:
        shape = with_extension(shape, start, end, peak)
        momentum = _hold_after(momentum, start, params.momentum) if momentum else None
    return Schedule(shape, momentum, plateau=params.scheduler == "plateau" and not params.lr_schedule)


def _hold_after(shape: Shape, start: int, value: float) -> Shape:
    return lambda step: shape(step) if step < start else value


# --- what depends on the past -------------------------------------------------------------------------


def plateau_factor(values: Sequence[float], patience: int = 5, factor: float = 0.1) -> float:
    """`factor` ** (times the validation loss failed to improve for `patience` epochs), as ReduceLROnPlateau.

    `values`: the validation loss of each epoch so far. An improvement is one of at least 0.01 %.
    """
    best, bad, reductions = math.inf, 0, 0
    for value in values:
        if value < best * (1 - 1e-4):
            best, bad = value, 0
        else:
            bad += 1
        if bad > patience:
            bad, reductions = 0, reductions + 1
    return factor**reductions


def should_stop(history: Sequence[dict[str, Any]], early_stopping: Any, minimized: Collection[str] = ()) -> bool:
    """True when the monitored validation metric has not improved by min_delta for `patience` epochs.

    `minimized`: metrics of which less is better, for when `early_stopping` does not say.
    """
    if not early_stopping:
        return False
    column = monitored_column(early_stopping.monitor_metric)
    minimize = early_stopping.minimize
    if minimize is None:
        minimize = is_minimized(split_column(column)[1], minimized)
    sign = 1 if minimize else -1
    best, bad = math.inf, 0
    for row in history:
        value = row.get(column)
        value = math.inf if value is None else sign * value
        if value < best - early_stopping.min_delta:
            best, bad = value, 0
        else:
            bad += 1
    return bad >= early_stopping.patience
