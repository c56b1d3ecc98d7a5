"""What a search tries, and what it does next: the space, samplers, pruners. Pure: no file, no process, no clock.

A point is one combination of values, by dotted name; a trial is a point with a seed and a fold: one child folder.
"""

import hashlib
import itertools
import json
import math
import random
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from utils import UserError, key64

Point = dict[str, Any]
DIGITS = 4  # significant digits of a sampled number: as many as its folder's name shows
LONGEST = 120  # characters of a folder's name


@dataclass(frozen=True)
class Trial:
    """A point, and which replicate of it. `number`: of the point, in the order of the search."""

    number: int
    values: Point
    seed: int | None = None  # None: the parent's
    fold: tuple[int, int] | None = None  # (part, of how many)


# --- names ------------------------------------------------------------------------------------------


def name_of(trial: Trial) -> str:
    """ "learning_rate_0.001__ps_0.5__seed_2": safe in any file system; what would be too long ends with a hash."""
    parts = [f"{key}_{as_word(value)}" for key, value in trial.values.items()]
    parts += [f"fold_{trial.fold[0]}"] if trial.fold else []
    parts += [f"seed_{trial.seed}"] if trial.seed is not None else []
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", "__".join(parts))
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 13]}-{_hash(trial)}"


def names_of(trials: Sequence[Trial]) -> list[str]:
    """A name for each; where two would have the same one, both end with a hash."""
    names = [name_of(trial) for trial in trials]
    seen: dict[str, int] = {}
    for name in names:
        seen[name.lower()] = seen.get(name.lower(), 0) + 1  # there are file systems that know no case
    return [name if seen[name.lower()] == 1 else f"{name[: LONGEST - 13]}-{_hash(trial)}"
            for name, trial in zip(names, trials, strict=True)]  # fmt: skip


def as_word(value: Any) -> str:
    """A value as part of a folder's name: 0.00001 rather than 1e-05, 0.001_0.01 for a list."""
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}" if value == 0 or 1e-7 <= abs(value) < 1e7 else repr(value)
    if isinstance(value, list):
        return "_".join(as_word(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _hash(trial: Trial) -> str:
    text = json.dumps([trial.values, trial.seed, trial.fold], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


# --- the space --------------------------------------------------------------------------------------


def choices(wanted: Any) -> list[Any] | None:
    """The values of a list or a {"choice": [...]}; None for a range."""
    return wanted if isinstance(wanted, list) else wanted.get("choice")


def grid(space: dict[str, Any]) -> list[Point]:
    """Every combination, the last key varying fastest. UserError for a range, which has no end of values."""
    lists = []
    for key, wanted in space.items():
        if (values := choices(wanted)) is None:
            raise UserError(
                f'hyper_search.{key}: a range is sampled, not enumerated: give a list, or set "search": '
                '{"sampler": "random", "num_trials": 20}'
            )
        lists.append(values)
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]


def draw(wanted: Any, rng: random.Random) -> Any:
    """One value, uniform over a list or a range (over its logarithm with "log"); both ends can come."""
    if (values := choices(wanted)) is not None:
        return values[int(rng.random() * len(values))]
    low, high, share = wanted["min"], wanted["max"], rng.random()
    if wanted.get("int"):
        low, high = low - 0.5, high + 0.5
    value = low * (high / low) ** share if wanted.get("log") else low + (high - low) * share
    return rounded(value, wanted)


def rounded(value: float, wanted: dict[str, Any]) -> float | int:
    """`value` as it is written into a name: a whole number, or one of four digits, within the range."""
    if wanted.get("int"):
        return min(max(round(value), math.ceil(wanted["min"])), math.floor(wanted["max"]))
    return float(min(max(float(f"{value:.{DIGITS}g}"), wanted["min"]), wanted["max"]))


def sample(space: dict[str, Any], seed: int) -> Iterator[Point]:
    """Random points without repetition, a function of `seed`; ends when a thousand draws bring nothing new."""
    seen: set[str] = set()
    misses = 0
    for number in itertools.count():
        rng = random.Random(key64(seed, "point", number))
        point = {key: draw(wanted, rng) for key, wanted in space.items()}
        word = json.dumps(point, sort_keys=True)
        misses = misses + 1 if word in seen else 0
        if misses > 1000:
            return
        if not misses:
            seen.add(word)
            yield point


def shuffled(points: Iterable[Point], seed: int) -> list[Point]:
    """In an order that is a function of `seed` and each point: ASHA promotes too many of a grid whose values rise."""
    return sorted(points, key=lambda point: key64(seed, "order", json.dumps(point, sort_keys=True)))


def suggest(space: dict[str, Any], seed: int, past: Sequence[tuple[Point, float | None]]) -> Point:
    """The next point of the Tree-structured Parzen Estimator (Bergstra et al., NeurIPS 2011), from what is known.

    `past`: points and their scores, larger is better; None: under way. A function of its arguments alone.
    """
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, BaseDistribution] = {}
    for key, wanted in space.items():
        if (values := choices(wanted)) is not None:
            distributions[key] = CategoricalDistribution(list(range(len(values))))
        else:
            kind = IntDistribution if wanted.get("int") else FloatDistribution
            distributions[key] = kind(wanted["min"], wanted["max"], log=bool(wanted.get("log")))
    sampler = optuna.samplers.TPESampler(seed=key64(seed, "tpe", len(past)) % 2**32, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for point, score in past:
        if (known := _inside(space, point)) is not None:
            state = optuna.trial.TrialState.RUNNING if score is None else optuna.trial.TrialState.COMPLETE
            study.add_trial(optuna.trial.create_trial(
                params=known, distributions=distributions, value=score, state=state))  # fmt: skip
    asked = study.ask(distributions).params
    return {key: values[asked[key]] if (values := choices(wanted)) is not None else rounded(asked[key], wanted)
            for key, wanted in space.items()}  # fmt: skip


def _inside(space: dict[str, Any], point: Point) -> dict[str, Any] | None:
    """The point as optuna knows it, lists by index; None when it lies outside of the space, as an added child may."""
    known = {}
    for key, wanted in space.items():
        value, values = point.get(key), choices(wanted)
        if values is not None:
            if value not in values:
                return None
            known[key] = values.index(value)
        elif isinstance(value, int | float) and wanted["min"] <= value <= wanted["max"]:
            known[key] = value
        else:
            return None
    return known


def trials_of(points: Iterable[Point], seeds: Sequence[int], folds: int | None) -> list[Trial]:
    """Every point with every seed and fold; the whole space with the first seed comes first."""
    replicates: list[tuple[int | None, tuple[int, int] | None]] = [
        (seed if len(seeds) > 1 else None, fold)
        for seed in seeds
        for fold in ([(part, folds) for part in range(1, folds + 1)] if folds else [None])
    ]
    numbered = list(enumerate(points))
    return [Trial(number, point, seed, fold) for seed, fold in replicates for number, point in numbered]


# --- what next --------------------------------------------------------------------------------------


@dataclass
class Progress:
    """How far a child has come. `scores`: the compared metric after each epoch, larger is better, -inf for none."""

    name: str
    number: int
    state: str = "new"  # new, paused, running, done, failed, pruned
    scores: list[float] = field(default_factory=list)

    def best(self, epochs: int) -> float:
        """The best score of the first so many epochs."""
        return max(self.scores[:epochs], default=-math.inf)


def rungs(num_epochs: float, eta: int, first: int) -> list[int]:
    """Epochs after which a child must be among the best 1/eta to go on; the last is the whole run.

    >>> rungs(9, 3, 1)
    [1, 3, 9]
    """
    found = [math.ceil(num_epochs)]
    while found[0] // eta >= first:
        found.insert(0, found[0] // eta)
    return found


def bracket(number: int, num_rungs: int, eta: int) -> int:
    """Which of Hyperband's brackets a point belongs to (Li et al., arXiv:1603.06560): the rung where it begins.

    Brackets get points in Hyperband's proportions, evenly mixed by the golden ratio.
    """
    top = num_rungs - 1
    weights = [math.ceil(num_rungs / (s + 1) * eta**s) for s in range(top, -1, -1)]
    share = (number + 0.5) * ((math.sqrt(5) - 1) / 2) % 1 * sum(weights)
    return next(index for index, end in enumerate(itertools.accumulate(weights)) if share < end)


def promote(children: Sequence[Progress], ladder: Sequence[int], eta: int) -> tuple[Progress, int | None] | None:
    """The child to go on with and the epoch to go to (None: its end), by ASHA (Li et al., arXiv:1810.05934).

    From the top rung down: a paused child among the best 1/eta of those that reached the rung. Then one that
    was interrupted between rungs, then a new one. None: nobody at present.
    """
    targets: list[int | None] = [*ladder[1:-1], None]
    for child in children:
        if child.state == "paused" and (reached := len(child.scores)) not in ladder:
            return child, next((rung for rung in ladder[:-1] if rung > reached), None)
    for rung, target in reversed(list(zip(ladder[:-1], targets, strict=True))):
        reached = sorted((c for c in children if len(c.scores) >= rung), key=lambda c: -c.best(rung))
        for child in reached[: len(reached) // eta]:
            if child.state == "paused" and len(child.scores) == rung:
                return child, target
    for child in children:
        if child.state == "new":
            return child, ladder[0] if len(ladder) > 1 else None
    if any(child.state in ("running", "done") for child in children):
        return None
    waiting = [child for child in children if child.state == "paused"]  # too few for any 1/eta: the best goes on
    best = max(waiting, key=lambda c: (len(c.scores), c.best(len(c.scores))), default=None)
    return (best, next((rung for rung in ladder[:-1] if rung > len(best.scores)), None)) if best else None


def is_below_median(child: Progress, others: Iterable[Progress], first: int = 5, warmup: int = 1) -> bool:
    """Whether the child's best is below the median of the others' bests at its epoch (Golovin et al., KDD 2017).

    Judged after `warmup` epochs, when `first` others have come as far.
    """
    epochs = len(child.scores)
    known = [other.best(epochs) for other in others if len(other.scores) >= epochs and other is not child]
    return epochs > warmup and len(known) >= first and child.best(epochs) < statistics.median(known)
