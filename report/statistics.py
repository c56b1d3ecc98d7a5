"""Intervals and tests over seeds and folds: which of several configurations is best, and whether that is noise.

Pure; numpy and scipy.special are imported on demand. Larger values are better here.

A winner is named when its lead is larger than the best of m equal configurations would have in 5 of 100 searches:
picking the best and testing it against each other one by itself would find a winner too easily among two tied at
the top, and the step-wise corrections for many tests too rarely. m counts those that may hold the second place, so
that configurations far behind do not make a tie at the top look like a lead. What this gives, simulated with these
functions, is in docs/statistics.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

LEVEL = 0.05
GATE = 0.01  # below it, seeds share noise, or groups scatter differently
REACH = 1.25  # standard errors behind the second within which a configuration counts as a contender (simulated)

Group = Mapping[str, float]  # which seed and fold -> value


def interval(values: Sequence[float], step: float = 0.0) -> tuple[float, float | None]:
    """(mean, half width of its 95 % interval by Student's t); None for the width of a single value.

    `step`: see resolution().
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, 1 - LEVEL / 2))
    return mean, quantile * math.sqrt(max(variance(values), step**2 / 12) / len(values))


def variance(values: Collection[float]) -> float:
    """Of a sample of two or more (statistics.variance goes through fractions and takes ten times as long)."""
    mean = statistics.fmean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


@dataclass(frozen=True)
class Difference:
    """Best against another: mean difference, its standard error, degrees of freedom, two-sided p."""

    mean: float
    error: float
    freedom: float
    p: float


@dataclass(frozen=True)
class Verdict:
    """What may be said of several configurations. Positions are those of the groups that were given."""

    best: int  # the highest mean
    is_winner: bool
    p: float | None  # of m equal ones, how often the best leads so far; None: no claim can be made
    p_holm: list[float | None]  # against the best, corrected by Holm for so many comparisons; None: not tested
    contenders: list[int] = field(default_factory=list)  # not shown to be worse than the best, without it
    unjudged: list[int] = field(default_factory=list)  # one value alone
    is_paired: bool = False


def judge(groups: Sequence[Group], is_paired: bool | None = None) -> Verdict:
    """The verdict over at least one group of at least one value each.

    `is_paired`: True compares over the seeds or folds that both have; None finds out whether the seeds share noise.
    """
    means = [statistics.fmean(group.values()) for group in groups]
    best = max(range(len(groups)), key=means.__getitem__)
    judged = [i for i, group in enumerate(groups) if len(group) > 1]
    unjudged = [i for i, group in enumerate(groups) if i != best and len(group) < 2]
    others = [i for i in judged if i != best]
    nothing: list[float | None] = [None] * len(groups)
    if best not in judged or not others:
        return Verdict(best, False, None, nothing, unjudged=unjudged)
    noise = Noise([groups[i] for i in judged], is_paired)
    at = {i: number for number, i in enumerate(judged)}
    found = noise.against(at[best], [at[i] for i in others])
    corrected = holm([difference.p for difference in found])
    second = max(others, key=means.__getitem__)
    rivals = [i for i in others if i != second]
    behind = noise.against(at[second], [at[i] for i in rivals])
    num = 2 + sum(difference.mean <= REACH * difference.error for difference in behind)
    closest = max(found, key=lambda difference: difference.p)
    p = lead_p(closest.mean / closest.error, closest.freedom, num)
    p_holm = nothing
    for i, value in zip(others, corrected, strict=True):
        p_holm[i] = value
    is_winner = p <= LEVEL
    near = [] if is_winner else [i for i, value in zip(others, corrected, strict=True) if value > LEVEL]
    near.sort(key=means.__getitem__, reverse=True)
    return Verdict(best, is_winner, p, p_holm, near, unjudged, noise.is_paired)


class Noise:
    """How far the values of groups with two or more values scatter, and so what their differences are worth.

    Paired over common seeds or folds when these share noise; else from the scatter within the groups: pooled when
    it is alike in all of them (Bartlett's test), each group's own (Welch) when not.
    """

    def __init__(self, groups: Sequence[Group], is_paired: bool | None = None):
        self.groups = groups
        self.means = [statistics.fmean(group.values()) for group in groups]
        self.floor = resolution([value for group in groups for value in group.values()]) ** 2 / 12
        self.variances = [max(variance(group.values()), self.floor) for group in groups]
        self.freedoms = [len(group) - 1 for group in groups]
        self.is_paired = shares_noise(groups) if is_paired is None else is_paired
        self.is_alike = bartlett_p(self.variances, self.freedoms) > GATE
        weighted = sum(v * f for v, f in zip(self.variances, self.freedoms, strict=True))
        self.freedom = sum(self.freedoms)
        self.pooled = weighted / self.freedom

    def against(self, one: int, others: Sequence[int]) -> list[Difference]:
        """Group `one` minus each of `others`."""
        from scipy.special import stdtr

        plain = [self._paired(one, other) or self._unpaired(one, other) for other in others]
        if not plain:
            return []
        t = [-abs(mean) / error for mean, error, _ in plain]
        p = 2 * stdtr([freedom for *_, freedom in plain], t)
        return [Difference(*values, min(1.0, float(value))) for values, value in zip(plain, p, strict=True)]

    def _paired(self, a: int, b: int) -> tuple[float, float, float] | None:
        first, second = self.groups[a], self.groups[b]
        common = [key for key in first if key in second] if self.is_paired else []
        if len(common) < 2:
            return None
        differences = [first[key] - second[key] for key in common]
        spread = max(variance(differences), 2 * self.floor)
        return statistics.fmean(differences), math.sqrt(spread / len(common)) or math.inf, len(common) - 1

    def _unpaired(self, a: int, b: int) -> tuple[float, float, float]:
        size_a, size_b = len(self.groups[a]), len(self.groups[b])
        mean = self.means[a] - self.means[b]
        if self.is_alike:
            return mean, math.sqrt(self.pooled * (1 / size_a + 1 / size_b)) or math.inf, self.freedom
        one, two = self.variances[a] / size_a, self.variances[b] / size_b
        freedom = (one + two) ** 2 / (one**2 / (size_a - 1) + two**2 / (size_b - 1))  # Welch and Satterthwaite
        return mean, math.sqrt(one + two), freedom


def resolution(values: Sequence[float]) -> float:
    """The smallest step between values. A metric that moves in steps scatters by step / sqrt(12) at least."""
    ordered = sorted(set(values))
    return min((b - a for a, b in zip(ordered, ordered[1:], strict=False)), default=0.0)


def shares_noise(groups: Sequence[Group]) -> bool:
    """Whether a seed that is high in one group is high in the others: the F test of rows in a two-way layout."""
    common = [key for key in groups[0] if all(key in group for group in groups)] if groups else []
    num_groups, num = len(groups), len(common)
    if num_groups < 2 or num < 2:
        return False
    from scipy.special import fdtrc

    centred = []
    for group in groups:
        mean = statistics.fmean(group[key] for key in common)
        centred.append([group[key] - mean for key in common])
    of_seed = [statistics.fmean(column) for column in zip(*centred, strict=True)]
    between = num_groups * sum(value**2 for value in of_seed)
    within = sum((value - shared) ** 2 for line in centred for value, shared in zip(line, of_seed, strict=True))
    if within <= 1e-12 * between:
        return between > 0
    freedom = (num_groups - 1) * (num - 1)
    return float(fdtrc(num - 1, freedom, between / (num - 1) / (within / freedom))) < GATE


def bartlett_p(variances: Sequence[float], freedoms: Sequence[int]) -> float:
    """p of equal variances (Bartlett, 1937). Without any scatter 1."""
    total, num = sum(freedoms), len(variances)
    if num < 2 or min(variances) <= 0:
        return 1.0 if num < 2 or max(variances) <= 0 else 0.0
    from scipy.special import chdtrc

    pooled = sum(v * f for v, f in zip(variances, freedoms, strict=True)) / total
    statistic = total * math.log(pooled) - sum(f * math.log(v) for v, f in zip(variances, freedoms, strict=True))
    correction = 1 + (sum(1 / f for f in freedoms) - 1 / total) / (3 * (num - 1))
    return float(chdtrc(num - 1, max(0.0, statistic / correction)))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979), in the given order."""
    corrected, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = highest
    return corrected


@lru_cache(maxsize=1024)
def lead_p(t: float, freedom: float, num: int) -> float:
    """How often the best of `num` equal means leads each other by `t` standard errors of a difference, or more.

    num * E over the estimated scatter u of the integral of phi(x) Phi(x - t sqrt(2) u)^(num - 1): one of them, at x,
    has all others so far behind. For two it is the two-sided p of Student's t.
    """
    import numpy as np
    from scipy.special import ndtr

    if num < 2 or not math.isfinite(t):
        return 0.0 if num < 2 or t > 0 else 1.0
    x = np.linspace(-8, 8, 101)
    phi = np.exp(-x * x / 2)
    u = np.linspace(0, 1 + 7 / math.sqrt(freedom), 201)[1:]
    chi = np.exp((freedom - 1) * np.log(u) - freedom * u * u / 2 + freedom / 2)  # of sqrt(chi^2 / freedom)
    behind = ndtr(x - t * math.sqrt(2) * u[:, None]) ** (num - 1)
    return min(1.0, float(num * (chi @ behind @ phi) / (chi.sum() * phi.sum())))
