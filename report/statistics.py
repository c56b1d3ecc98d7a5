"""Intervals and tests over seeds and folds: which of several configurations is best, and whether that is noise.

Pure. Higher values are better here. The distributions are those of scipy.special: scipy.stats has the same ones, but
takes half a second to import, longer than a table of a thousand runs.

A winner is declared when, among m equal configurations, the best would lead by as much in at most 5 of 100 searches.
Choosing the best first and then testing it against each other one would declare a winner too often when two are
tied at the top, and the usual corrections for many tests too rarely. m counts only the configurations that could be
second: otherwise configurations far behind would make a tie at the top look like a lead. Error rates and power,
simulated with these functions, are in docs/statistics.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

LEVEL = 0.05
GATE = 0.01  # level of the tests for shared noise and for unequal variances
REACH = 1.25  # standard errors behind the second within which a configuration could be second (chosen by simulation)

Group: TypeAlias = Mapping[str, float]  # seed and fold of a run -> its value


def confidence_interval(values: Sequence[float], step: float = 0.0) -> tuple[float, float | None]:
    """(mean, half width of its 95 % interval by Student's t); the width of a single value is None.

    step: the smallest difference that the metric can show, see resolution().
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, 1 - LEVEL / 2))
    return mean, quantile * math.sqrt(max(variance(values), step**2 / 12) / len(values))


def variance(values: Collection[float]) -> float:
    """Sample variance of two or more values; statistics.variance gives the same in ten times the time."""
    mean = statistics.fmean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


@dataclass(frozen=True)
class Difference:
    """One group's mean minus another's."""

    mean: float
    error: float  # standard error of the mean difference
    freedom: float  # degrees of freedom
    p: float  # two-sided


@dataclass(frozen=True)
class Verdict:
    """What several groups show. Numbers are positions in the list of groups that was judged."""

    best: int  # the group with the highest mean
    is_winner: bool
    p: float | None  # how often the best of m equal groups would lead by as much; None: nothing can be claimed
    p_holm: list[float | None]  # of each group against the best, corrected by Holm; None: not tested
    contenders: list[int] = field(default_factory=list)  # without a winner: groups not shown to be worse, best first
    unjudged: list[int] = field(default_factory=list)  # groups of a single value
    is_paired: bool = False


def judge(groups: Sequence[Group], is_paired: bool | None = None) -> Verdict:
    """The verdict over one or more groups of one or more values each.

    is_paired: True compares over the seeds or folds that two groups share; None does so if the seeds share noise.
    """
    # The best mean; only groups of two or more values can be tested.
    means = [statistics.fmean(group.values()) for group in groups]
    best = max(range(len(groups)), key=means.__getitem__)
    judged = [i for i, group in enumerate(groups) if len(group) > 1]
    unjudged = [i for i, group in enumerate(groups) if i != best and len(group) < 2]
    others = [i for i in judged if i != best]
    p_holm: list[float | None] = [None] * len(groups)
    if best not in judged or not others:
        return Verdict(best, False, None, p_holm, unjudged=unjudged)

    # The best against each other group.
    noise = NoiseModel([groups[i] for i in judged], is_paired)
    place = {i: number for number, i in enumerate(judged)}
    differences = noise.differences(place[best], [place[i] for i in others])
    corrected = correct_by_holm([difference.p for difference in differences])
    for i, p in zip(others, corrected, strict=True):
        p_holm[i] = p

    # Does it lead the closest by more than the best of num_candidates equal groups would?
    num_candidates = 2 + _count_seconds(noise, others, means, place)
    closest = max(differences, key=lambda difference: difference.p)
    p_lead = lead_p_value(closest.mean / closest.error, closest.freedom, num_candidates)
    is_winner = p_lead <= LEVEL
    contenders = [] if is_winner else [i for i, p in zip(others, corrected, strict=True) if p > LEVEL]
    contenders.sort(key=means.__getitem__, reverse=True)
    return Verdict(best, is_winner, p_lead, p_holm, contenders, unjudged, noise.is_paired)


def _count_seconds(noise: NoiseModel, others: Sequence[int], means: Sequence[float], place: Mapping[int, int]) -> int:
    """The number of groups, besides the second, that are within REACH of the second and so could be second."""
    second = max(others, key=means.__getitem__)
    behind = noise.differences(place[second], [place[i] for i in others if i != second])
    return sum(difference.mean <= REACH * difference.error for difference in behind)


class NoiseModel:
    """How much the values of groups scatter, and so how significant differences between their means are.

    Groups are compared in pairs over their common seeds or folds when these share noise. Otherwise the scatter within
    the groups counts: pooled over all of them when it is alike (Bartlett's test), that of the two groups (Welch's
    test) when it is not.
    """

    def __init__(self, groups: Sequence[Group], is_paired: bool | None = None):
        self.groups = groups
        self.means = [statistics.fmean(group.values()) for group in groups]
        self.floor = resolution([value for group in groups for value in group.values()]) ** 2 / 12
        self.variances = [max(variance(group.values()), self.floor) for group in groups]
        self.freedoms = [len(group) - 1 for group in groups]
        self.is_paired = has_shared_noise(groups) if is_paired is None else is_paired
        self.has_equal_variances = bartlett_p_value(self.variances, self.freedoms) > GATE
        self.freedom = sum(self.freedoms)
        weighted = sum(v * f for v, f in zip(self.variances, self.freedoms, strict=True))
        self.pooled = weighted / self.freedom

    def differences(self, one: int, others: Sequence[int]) -> list[Difference]:
        """Group `one` minus each of `others`."""
        if not others:
            return []
        from scipy.special import stdtr

        pairs = [self._paired(one, other) or self._unpaired(one, other) for other in others]
        t = [-abs(mean) / error for mean, error, _ in pairs]
        p = 2 * stdtr([freedom for *_, freedom in pairs], t)
        return [Difference(*pair, min(1.0, float(value))) for pair, value in zip(pairs, p, strict=True)]

    def _paired(self, a: int, b: int) -> tuple[float, float, float] | None:
        """(mean difference, its standard error, degrees of freedom); None with fewer than two common seeds."""
        first, second = self.groups[a], self.groups[b]
        common = [key for key in first if key in second] if self.is_paired else []
        if len(common) < 2:
            return None
        differences = [first[key] - second[key] for key in common]
        scatter = max(variance(differences), 2 * self.floor)
        return statistics.fmean(differences), math.sqrt(scatter / len(common)) or math.inf, len(common) - 1

    def _unpaired(self, a: int, b: int) -> tuple[float, float, float]:
        size_a, size_b = len(self.groups[a]), len(self.groups[b])
        mean = self.means[a] - self.means[b]
        if self.has_equal_variances:
            return mean, math.sqrt(self.pooled * (1 / size_a + 1 / size_b)) or math.inf, self.freedom
        one = self.variances[a] / size_a
        two = self.variances[b] / size_b
        freedom = (one + two) ** 2 / (one**2 / (size_a - 1) + two**2 / (size_b - 1))  # Welch and Satterthwaite
        return mean, math.sqrt(one + two), freedom


def resolution(values: Sequence[float]) -> float:
    """The smallest difference between two values, 0 when there is none.

    A metric that moves in steps (one image more or less) scatters by at least step / sqrt(12).
    """
    ordered = sorted(set(values))
    return min((b - a for a, b in zip(ordered, ordered[1:], strict=False)), default=0.0)


def has_shared_noise(groups: Sequence[Group]) -> bool:
    """True if a seed that is high in one group is high in the others: the F test for rows in a two-way layout."""
    common = [key for key in groups[0] if all(key in group for group in groups)] if groups else []
    num_groups, num_seeds = len(groups), len(common)
    if num_groups < 2 or num_seeds < 2:
        return False
    from scipy.special import fdtrc

    # Each value minus its group's mean, then the mean of each seed over the groups.
    centred = []
    for group in groups:
        mean = statistics.fmean(group[key] for key in common)
        centred.append([group[key] - mean for key in common])
    seed_means = [statistics.fmean(column) for column in zip(*centred, strict=True)]

    # The scatter between seeds against what they leave unexplained.
    between = num_groups * sum(value**2 for value in seed_means)
    within = sum((value - shared) ** 2 for line in centred for value, shared in zip(line, seed_means, strict=True))
    if within <= 1e-12 * between:
        return between > 0
    freedom = (num_groups - 1) * (num_seeds - 1)
    return float(fdtrc(num_seeds - 1, freedom, between / (num_seeds - 1) / (within / freedom))) < GATE


def bartlett_p_value(variances: Sequence[float], freedoms: Sequence[int]) -> float:
    """p of Bartlett's test for equal variances (1937); 1 when nothing scatters at all, 0 when only some groups do."""
    total, num = sum(freedoms), len(variances)
    if num < 2 or max(variances) <= 0:
        return 1.0
    if min(variances) <= 0:
        return 0.0
    from scipy.special import chdtrc

    pooled = sum(v * f for v, f in zip(variances, freedoms, strict=True)) / total
    statistic = total * math.log(pooled) - sum(f * math.log(v) for v, f in zip(variances, freedoms, strict=True))
    correction = 1 + (sum(1 / f for f in freedoms) - 1 / total) / (3 * (num - 1))
    return float(chdtrc(num - 1, max(0.0, statistic / correction)))


def correct_by_holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979), in the given order."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


@lru_cache(maxsize=1024)
def lead_p_value(t: float, freedom: float, num: int) -> float:
    """How often the best of `num` equal means leads each other one by `t` standard errors of a difference, or more.

    num * E[ integral of phi(x) Phi(x - t sqrt(2) u)^(num - 1) dx ] over the estimated scatter u, where u^2 is
    chi^2 / freedom: one mean is at x, and all others are at least that far below it. For num = 2 it is the two-sided p
    of Student's t.
    """
    import numpy as np
    from scipy.special import ndtr

    if num < 2 or not math.isfinite(t):
        return 0.0 if num < 2 or t > 0 else 1.0
    x = np.linspace(-8, 8, 101)
    phi = np.exp(-x * x / 2)
    u = np.linspace(0, 1 + 7 / math.sqrt(freedom), 201)[1:]
    density = np.exp((freedom - 1) * np.log(u) - freedom * u * u / 2 + freedom / 2)  # of u, not normalised
    all_below = ndtr(x - t * math.sqrt(2) * u[:, None]) ** (num - 1)  # (200, 101)
    return min(1.0, float(num * (density @ all_below @ phi) / (density.sum() * phi.sum())))
