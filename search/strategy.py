"""What a search tries and what it does next: the space, samplers, pruners. Pure: no files, processes or clocks.

A point is one combination of values, by dotted name; a trial is a point with a seed and a fold: one child folder.
"""

import hashlib
import itertools
import json
import math
import random
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, NotRequired, TypedDict

from utils import UserError, key64

DIGITS = 4  # significant digits of a sampled number: as many as the folder's name shows
MAX_NAME = 120  # characters of a folder's name
MAX_REPEATS = 1000  # after this number of repeated random points in a row the space counts as exhausted


class Range(TypedDict):
    """The numbers from "min" to "max", both included."""

    min: float
    max: float
    log: NotRequired[bool]  # uniform in the logarithm
    int: NotRequired[bool]  # whole numbers


class Choice(TypedDict):
    choice: list[object]


Dimension = list[object] | Choice | Range  # one value of hyper_search
Space = Mapping[str, Dimension]  # hyper_search: dotted name -> what is possible
Point = dict[str, object]  # dotted name -> value
State = Literal["new", "paused", "running", "done", "failed", "pruned"]


@dataclass(frozen=True)
class Trial:
    """One child to train: a point, and which replicate of it."""

    number: int  # of the point, in the order of the search
    values: Point
    seed: int | None = None  # None: the parent's
    fold: tuple[int, int] | None = None  # (part, number of parts)


# --- names ------------------------------------------------------------------------------------------


def name_of(trial: Trial) -> str:
    """ "learning_rate_0.001__ps_0.5__seed_2", safe on any file system; a name that is too long ends with a hash."""
    parts = [f"{key}_{as_word(value)}" for key, value in trial.values.items()]
    parts += [f"fold_{trial.fold[0]}"] if trial.fold else []
    parts += [f"seed_{trial.seed}"] if trial.seed is not None else []
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", "__".join(parts))
    return name if len(name) <= MAX_NAME else _with_hash(name, trial)


def names_of(trials: Sequence[Trial]) -> list[str]:
    """The name of each trial; names that would be equal end with a hash."""
    names = [name_of(trial) for trial in trials]
    counts: dict[str, int] = {}
    for name in names:
        lower = name.lower()  # some file systems ignore case
        counts[lower] = counts.get(lower, 0) + 1
    pairs = zip(names, trials, strict=True)
    return [name if counts[name.lower()] == 1 else _with_hash(name, trial) for name, trial in pairs]


def as_word(value: object) -> str:
    """A value as part of a folder's name: 0.00001 rather than 1e-05, 0.001_0.01 for a list."""
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}" if value == 0 or 1e-7 <= abs(value) < 1e7 else repr(value)
    if isinstance(value, list):
        return "_".join(as_word(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _with_hash(name: str, trial: Trial) -> str:
    text = json.dumps([trial.values, trial.seed, trial.fold], sort_keys=True)
    return f"{name[: MAX_NAME - 13]}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


# --- the space --------------------------------------------------------------------------------------


def choices_or_range(dimension: Dimension) -> list[object] | Range:
    """The values of a list or a {"choice": [...]}, or the range."""
    if isinstance(dimension, list):
        return dimension
    if "choice" in dimension:
        return dimension["choice"]
    return dimension


def grid(space: Space) -> list[Point]:
    """Every combination, the last key varying fastest. UserError for a range: its values cannot be listed."""
    lists = []
    for key, dimension in space.items():
        values = choices_or_range(dimension)
        if not isinstance(values, list):
            raise UserError(
                f'hyper_search.{key}: a range is sampled, not enumerated: give a list, or set "search": '
                '{"sampler": "random", "num_trials": 20}'
            )
        lists.append(values)
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]


def draw(dimension: Dimension, rng: random.Random) -> object:
    """One value, uniform over a list or a range (over its logarithm with "log"); both ends are possible."""
    values = choices_or_range(dimension)
    share = rng.random()  # in [0, 1)
    if isinstance(values, list):
        return values[int(share * len(values))]
    low, high = values["min"], values["max"]
    if values.get("int"):  # the first and the last number are as likely as the others
        low, high = low - 0.5, high + 0.5
    value = low * (high / low) ** share if values.get("log") else low + (high - low) * share
    return rounded(value, values)


def rounded(value: float, bounds: Range) -> float | int:
    """`value` as the folder's name shows it: a whole number, or one of four digits, within the range."""
    if bounds.get("int"):
        return min(max(round(value), math.ceil(bounds["min"])), math.floor(bounds["max"]))
    return float(min(max(float(f"{value:.{DIGITS}g}"), bounds["min"]), bounds["max"]))


def sample(space: Space, seed: int) -> Iterator[Point]:
    """Random points without repetition, a function of `seed`; ends when 1,000 draws in a row bring nothing new."""
    seen: set[str] = set()
    repeats = 0
    for number in itertools.count():
        rng = random.Random(key64(seed, "point", number))
        point = {key: draw(dimension, rng) for key, dimension in space.items()}
        text = json.dumps(point, sort_keys=True)
        if text not in seen:
            seen.add(text)
            repeats = 0
            yield point
            continue
        repeats += 1
        if repeats > MAX_REPEATS:
            return


def shuffled(points: Iterable[Point], seed: int) -> list[Point]:
    """The points in an order that depends on `seed` and each point alone.

    ASHA over a grid whose scores rise from point to point would promote nearly all of it.
    """
    return sorted(points, key=lambda point: key64(seed, "order", json.dumps(point, sort_keys=True)))


def suggest_point(space: Space, seed: int, past: Sequence[tuple[Point, float | None]]) -> Point:
    """The next point of the Tree-structured Parzen Estimator (Bergstra et al., NeurIPS 2011).

    `past`: points and their scores, larger is better; None: under way. A function of its arguments alone.
    """
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # 1. the space, as optuna names it: choices by their index
    distributions: dict[str, BaseDistribution] = {}
    for key, dimension in space.items():
        values = choices_or_range(dimension)
        if isinstance(values, list):
            distributions[key] = CategoricalDistribution(list(range(len(values))))
        elif values.get("int"):
            distributions[key] = IntDistribution(int(values["min"]), int(values["max"]), log=bool(values.get("log")))
        else:
            distributions[key] = FloatDistribution(values["min"], values["max"], log=bool(values.get("log")))
    # 2. what is known, as trials of a study in memory
    sampler = optuna.samplers.TPESampler(seed=key64(seed, "tpe", len(past)) % 2**32, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for point, score in past:
        known = _to_optuna(space, point)
        if known is not None:
            state = optuna.trial.TrialState.RUNNING if score is None else optuna.trial.TrialState.COMPLETE
            trial = optuna.trial.create_trial(params=known, distributions=distributions, value=score, state=state)
            study.add_trial(trial)
    # 3. its suggestion, as values of the space
    asked = study.ask(distributions).params
    point = {}
    for key, dimension in space.items():
        values = choices_or_range(dimension)
        point[key] = values[asked[key]] if isinstance(values, list) else rounded(asked[key], values)
    return point


def _to_optuna(space: Space, point: Point) -> dict[str, object] | None:
    """The point with choices by their index; None when it lies outside the space, as an added child's may."""
    known: dict[str, object] = {}
    for key, dimension in space.items():
        value = point.get(key)
        values = choices_or_range(dimension)
        if isinstance(values, list):
            if value not in values:
                return None
            known[key] = values.index(value)
        elif isinstance(value, int | float) and values["min"] <= value <= values["max"]:
            known[key] = value
        else:
            return None
    return known


def trials_of(points: Iterable[Point], seeds: Sequence[int], num_folds: int | None) -> list[Trial]:
    """Every point with every seed and fold: the whole space with the first seed, then with the next one."""
    folds = [(part, num_folds) for part in range(1, num_folds + 1)] if num_folds else [None]
    replicates = [(seed if len(seeds) > 1 else None, fold) for seed in seeds for fold in folds]
    numbered = list(enumerate(points))
    return [Trial(number, point, seed, fold) for seed, fold in replicates for number, point in numbered]


# --- the pruners ------------------------------------------------------------------------------------


@dataclass
class ChildProgress:
    """How far a child has come. `scores`: the compared metric after each epoch, larger is better, -inf for none."""

    name: str
    number: int  # of its point; -1: added by hand
    state: State = "new"
    scores: list[float] = field(default_factory=list)

    def best(self, num_epochs: int) -> float:
        """The best score of the first `num_epochs` epochs."""
        return max(self.scores[:num_epochs], default=-math.inf)


Next = tuple[ChildProgress, int | None]  # the child to train, and the epoch to pause at; None: its end


def rungs(num_epochs: float, eta: int, first: int) -> list[int]:
    """Epochs after which a child must be among the best 1/eta to go on; the last is the whole run.

    >>> rungs(9, 3, 1)
    [1, 3, 9]
    """
    ladder = [math.ceil(num_epochs)]
    while ladder[0] // eta >= first:
        ladder.insert(0, ladder[0] // eta)
    return ladder


def bracket(number: int, num_rungs: int, eta: int) -> int:
    """The Hyperband bracket of a point, which is the index of the rung where it begins (Li et al., arXiv:1603.06560).

    Brackets get points in Hyperband's proportions, evenly mixed by the golden ratio.
    """
    top = num_rungs - 1
    weights = [math.ceil(num_rungs / (s + 1) * eta**s) for s in range(top, -1, -1)]
    share = (number + 0.5) * ((math.sqrt(5) - 1) / 2) % 1 * sum(weights)
    return next(index for index, end in enumerate(itertools.accumulate(weights)) if share < end)


def promote(children: Sequence[ChildProgress], ladder: Sequence[int], eta: int) -> Next | None:
    """The child to train next, by ASHA (Li et al., arXiv:1810.05934). None: none at present."""
    return (
        _continue_interrupted(children, ladder)
        or _promote_from_top(children, ladder, eta)
        or _begin_new(children, ladder)
        or _continue_best(children, ladder)
    )


def _next_rung(ladder: Sequence[int], num_epochs: int) -> int | None:
    """The first rung above `num_epochs`; None for the top one, where a child is done."""
    return next((rung for rung in ladder[:-1] if rung > num_epochs), None)


def _continue_interrupted(children: Sequence[ChildProgress], ladder: Sequence[int]) -> Next | None:
    """A child that stopped between two rungs."""
    for child in children:
        if child.state == "paused" and len(child.scores) not in ladder:
            return child, _next_rung(ladder, len(child.scores))
    return None


def _promote_from_top(children: Sequence[ChildProgress], ladder: Sequence[int], eta: int) -> Next | None:
    """From the top rung down: a paused child among the best 1/eta of those that reached the rung."""
    for rung in reversed(ladder[:-1]):
        reached = [child for child in children if len(child.scores) >= rung]
        reached.sort(key=lambda child: -child.best(rung))
        for child in reached[: len(reached) // eta]:
            if child.state == "paused" and len(child.scores) == rung:
                return child, _next_rung(ladder, rung)
    return None


def _begin_new(children: Sequence[ChildProgress], ladder: Sequence[int]) -> Next | None:
    for child in children:
        if child.state == "new":
            return child, _next_rung(ladder, 0)
    return None


def _continue_best(children: Sequence[ChildProgress], ladder: Sequence[int]) -> Next | None:
    """When every child is paused, there are too few for any 1/eta: the best of the highest rung goes on."""
    if any(child.state in ("running", "done") for child in children):
        return None
    waiting = [child for child in children if child.state == "paused"]
    best = max(waiting, key=lambda child: (len(child.scores), child.best(len(child.scores))), default=None)
    return (best, _next_rung(ladder, len(best.scores))) if best else None


def is_below_median(child: ChildProgress, others: Iterable[ChildProgress], first: int = 5, warmup: int = 1) -> bool:
    """Whether a child's best is below the median of the others' bests at its epoch (Golovin et al., KDD 2017).

    Judged after `warmup` epochs, once `first` others have come as far.
    """
    num_epochs = len(child.scores)
    bests = [other.best(num_epochs) for other in others if len(other.scores) >= num_epochs and other is not child]
    return num_epochs > warmup and len(bests) >= first and child.best(num_epochs) < statistics.median(bests)
