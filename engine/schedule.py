"""Learning-rate shapes: pure functions of the optimizer step, so resuming needs the step and nothing else.

A shape maps a step in [0, total) to a multiplier of each layer group's `initial_lr`. Rules that depend on the past
(plateau, early stopping) are pure functions of the history.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from folder.history import is_minimized, monitored_column, split_column
from params import Params
from params.sections import EarlyStoppingKeys

Shape = Callable[[int], float]
AS_STATED = 1  # third entry of an extension during which the learning rate follows lr_schedule


@dataclass(frozen=True)
class Schedule:
    """The learning rate and the momentum of each step."""

    multiplier: Shape  # step -> factor of the initial rate
    momentum: Shape | None = None  # step -> SGD's momentum; None: constant
    plateau: bool = False  # whether the rate is also multiplied by plateau_factor of the history


def num_steps(epochs: float, steps_per_epoch: int) -> int:
    """Number of optimizer steps in a duration in epochs, which may be fractional; at least one."""
    return max(1, round(epochs * steps_per_epoch))


def is_time(step: int, every: int, total: int) -> bool:
    """True after every `every`-th step and after the last one."""
    return step % every == 0 or step == total


# --- shapes -----------------------------------------------------------------------------------------


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def _two_phases(total: int, pct_start: float, low: float, high: float, final: float) -> Shape:
    """From `low` to `high` over the first `pct_start` of the steps, then to `final`, each along half a cosine."""
    peak = pct_start * total - 1  # the step of the highest value; a fraction, as in torch's OneCycleLR
    last = total - 1

    def shape(step: int) -> float:
        if step <= peak:
            return _cosine(low, high, step / peak if peak else 1.0)
        return _cosine(high, final, (step - peak) / (last - peak) if last > peak else 1.0)

    return shape


def one_cycle(params: Params, total: int, warm: int) -> Shape:
    """From 1/div_factor to 1, then to 1/(div_factor * 1e4): torch's OneCycleLR (Smith & Topin, arXiv:1708.07120)."""
    low = 1 / params.div_factor
    return _two_phases(total, params.pct_start, low, 1.0, low / 1e4)


def cosine(params: Params, total: int, warm: int) -> Shape:
    """Half a cosine from 1 to 0 over the steps after the warm-up (Loshchilov & Hutter, arXiv:1608.03983)."""
    return lambda step: _cosine(1.0, 0.0, (step - warm) / max(1, total - warm))


def linear(params: Params, total: int, warm: int) -> Shape:
    """A straight line from 1 to 0 over the steps after the warm-up."""
    return lambda step: 1.0 - (step - warm) / max(1, total - warm)


def step_decay(params: Params, total: int, warm: int) -> Shape:
    """A tenth after 50 % and again after 75 % of the steps (He et al., arXiv:1512.03385, section 4.2)."""
    return lambda step: 0.1 ** ((step >= total * 0.5) + (step >= total * 0.75))


def constant(params: Params, total: int, warm: int) -> Shape:
    """Always 1. Under `plateau`, too, whose factor comes from the history (see plateau_factor)."""
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
    """Absolute rates. [[3, 0.1], [100, 0.01]]: 0.1 until epoch 3, then 0.01; the last rate also holds after its end."""
    ends = [(round(until * steps_per_epoch), rate) for until, rate in pieces]
    return lambda step: next((rate for end, rate in ends if step < end), ends[-1][1])


def with_warmup(shape: Shape, warm: int) -> Shape:
    """`shape`, its first `warm` steps replaced by a straight line up to its value at step `warm`."""
    return lambda step: shape(warm) * (step + 1) / (warm + 1) if step < warm else shape(step)


def with_extension(shape: Shape, start: int, end: int, peak: float = 1.0) -> Shape:
    """`shape` up to `start`, then a cosine from a tenth of `peak` to zero at `end`."""
    return lambda step: _cosine(0.1 * peak, 0.0, (step - start) / max(1, end - start)) if step >= start else shape(step)


def replace_from(shape: Shape, start: int, later: Shape) -> Shape:
    """`shape` up to `start`, then `later`."""
    return lambda step: shape(step) if step < start else later(step)


def new_extension(params: Params, start: int, end: int) -> list[int]:
    """An extension over the steps [start, end), as the state keeps it: marked AS_STATED under a stated lr_schedule."""
    return [start, end, AS_STATED] if params.lr_schedule else [start, end]


def is_as_stated(extension: Sequence[int]) -> bool:
    """Whether the extension follows lr_schedule. One without the mark is a cosine tail, as in states of format 1."""
    return AS_STATED in extension[2:]


def make_schedule(
    params: Params, total: int, steps_per_epoch: int, extensions: Sequence[Sequence[int]] = ()
) -> Schedule:
    """The schedule that `params` asks for over `total` steps, then its `extensions` (see new_extension)."""
    is_cycle = params.scheduler == "one_cycle" and not params.lr_schedule
    # The learning rate: stated piece by piece, or a shape with a warm-up (one_cycle has its own).
    stated = piecewise(params.lr_schedule, steps_per_epoch) if params.lr_schedule else None
    if params.lr_schedule and stated:
        shape = stated
        peak = max(rate for _, rate in params.lr_schedule)
    else:
        warm = 0 if is_cycle else round(params.warmup * steps_per_epoch)
        shape = with_warmup(SCHEDULERS[params.scheduler](params, total, warm), warm)
        peak = 1.0
    # In one_cycle, SGD's momentum falls while the rate rises and vice versa, as in torch's OneCycleLR.
    momentum = None
    if is_cycle and params.optimizer == "sgd" and params.momentum:
        high = min(params.momentum + 0.05, 0.999)
        low = max(params.momentum - 0.05, 0.0)
        momentum = _two_phases(total, params.pct_start, high, low, high)
    # Extensions replace both from their start on.
    for extension in extensions:
        start, end = extension[:2]
        if stated and is_as_stated(extension):
            shape = replace_from(shape, start, stated)
        else:
            shape = with_extension(shape, start, end, peak)
        momentum = replace_from(momentum, start, lambda step: params.momentum) if momentum else None
    return Schedule(shape, momentum, plateau=params.scheduler == "plateau" and not params.lr_schedule)


# --- rules that depend on the past --------------------------------------------------------------------


def plateau_factor(values: Sequence[float], patience: int = 5, factor: float = 0.1) -> float:
    """`factor` for each time that the validation loss did not improve for more than `patience` epochs.

    As torch's ReduceLROnPlateau. `values`: the validation loss of each epoch so far; it improves when it falls by
    more than 0.01 % of the best one.
    """
    best = math.inf
    num_bad = 0
    num_reductions = 0
    for value in values:
        if value < best * (1 - 1e-4):
            best = value
            num_bad = 0
        else:
            num_bad += 1
        if num_bad > patience:
            num_reductions += 1
            num_bad = 0
    return factor**num_reductions


def should_stop(
    history: Sequence[Mapping[str, float | None]],
    early_stopping: EarlyStoppingKeys | None,
    minimized: Collection[str] = (),
) -> bool:
    """True when the monitored metric has not improved by more than min_delta for `patience` epochs.

    `minimized`: the metrics of which less is better, used when `early_stopping` does not say. A value that is not
    defined is no improvement.
    """
    if not early_stopping:
        return False
    column = monitored_column(early_stopping.monitor_metric)
    minimize = early_stopping.minimize
    if minimize is None:
        minimize = is_minimized(split_column(column)[1], minimized)
    sign = 1 if minimize else -1
    best = math.inf
    num_bad = 0
    for row in history:
        value = row.get(column)
        signed = math.inf if value is None else sign * value
        if signed < best - early_stopping.min_delta:
            best = signed
            num_bad = 0
        else:
            num_bad += 1
    return num_bad >= early_stopping.patience
