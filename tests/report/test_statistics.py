"""Intervals and tests over seeds and folds: against scipy.stats, and how often a winner is declared."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from report.statistics import (
    REACH,
    NoiseModel,
    bartlett_p_value,
    confidence_interval,
    correct_by_holm,
    has_shared_noise,
    judge,
    lead_p_value,
    resolution,
    variance,
)


def searches(num, means, shared=0.0, num_seeds=5, seed=0, deviations=1.0):
    """`num` simulated searches: accuracies whose noise over seeds has a standard deviation of 0.01."""
    rng, k = np.random.default_rng(seed), len(means)
    for _ in range(num):
        own, common = rng.standard_normal((k, num_seeds)), rng.standard_normal((1, num_seeds))
        noise = np.sqrt(1 - shared) * own + np.sqrt(shared) * common
        values = 0.9 + 0.01 * (np.asarray(means)[:, None] + noise * np.broadcast_to(deviations, k)[:, None])
        yield [{str(seed): float(value) for seed, value in enumerate(row)} for row in values]


def won(many) -> float:
    """The share of searches with a winner."""
    verdicts = [judge(groups) for groups in many]
    return sum(verdict.is_winner for verdict in verdicts) / len(verdicts)


CHANCE = 0.03  # three standard errors of 5 % of 500 searches


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_a_search_without_a_difference_has_no_winner(shared):
    assert won(searches(200, [0] * 5, shared, seed=1)) <= 0.05


@pytest.mark.parametrize("shared", [0.0, 0.5])
@pytest.mark.parametrize("k", [2, 3, 10])
def test_other_numbers_of_configurations_have_none_either(k, shared):
    assert won(searches(500, [0] * k, shared, seed=1)) <= 0.05 + CHANCE


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_two_sigma_is_found_with_five_seeds(shared):
    verdicts = [judge(groups) for groups in searches(200, [2, 0, 0, 0, 0], shared, seed=2)]
    assert sum(verdict.is_winner and verdict.best == 0 for verdict in verdicts) >= 160


@pytest.mark.parametrize(("k", "power"), [(2, 0.79), (3, 0.84), (10, 0.83)])
def test_two_sigma_among_other_numbers_of_configurations(k, power):
    """For two, Student's t finds 79 % and no exact test more."""
    assert won(searches(500, [2] + [0] * (k - 1), seed=2)) >= power - CHANCE


def test_a_tie_at_the_top_is_no_lead():
    assert won(searches(200, [0, 0, -4, -4, -4, -4], seed=3)) <= 0.08
    assert won(searches(200, [0, 0, -1, -1, -1], seed=3)) <= 0.15


def test_one_that_diverges_hides_no_winner():
    assert won(searches(200, [4, 0, 0, -40], deviations=[1, 1, 1, 12], seed=4)) >= 0.8


def test_agrees_with_scipy():
    groups = next(searches(1, [0, 1, 2], seed=11))
    a, b = ([*groups[i].values()] for i in (0, 1))
    mean, width = confidence_interval(a)
    low, high = stats.t.interval(0.95, 4, np.mean(a), stats.sem(a))
    assert (mean - width, mean + width) == pytest.approx((low, high))
    paired = NoiseModel(groups[:2], is_paired=True).differences(0, [1])[0]
    assert paired.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    pooled = NoiseModel(groups[:2], is_paired=False).differences(0, [1])[0]
    assert pooled.p == pytest.approx(stats.ttest_ind(a, b).pvalue)
    c = [100 * value for value in b]
    welch = NoiseModel([groups[0], dict(enumerate(c))], is_paired=False)
    assert not welch.has_equal_variances
    assert welch.differences(0, [1])[0].p == pytest.approx(stats.ttest_ind(a, c, equal_var=False).pvalue)
    of_three = [[*group.values()] for group in groups]
    assert bartlett_p_value([np.var(v, ddof=1) for v in of_three], [4] * 3) == pytest.approx(
        stats.bartlett(*of_three).pvalue
    )
    assert correct_by_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize("freedom", [4, 8, 8.5, 40])
def test_lead_of_two_is_students_t_and_of_more_is_what_chance_gives(freedom):
    for t in (0.5, 2.0, 4.0):
        assert lead_p_value(t, freedom, 2) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-3)
    rng = np.random.default_rng(0)
    means = np.sort(rng.standard_normal((200_000, 6)), axis=1)
    scatter = np.sqrt(rng.chisquare(freedom, 200_000) / freedom)
    seen = np.mean((means[:, -1] - means[:, -2]) / (scatter * np.sqrt(2)) >= 1.0)
    assert lead_p_value(1.0, freedom, 6) == pytest.approx(seen, rel=0.05)


def test_shared_noise_is_seen():
    assert sum(has_shared_noise(groups) for groups in searches(100, [0] * 4, shared=0.9, seed=1)) > 90
    assert sum(has_shared_noise(groups) for groups in searches(100, [0] * 4, seed=1)) < 6
    assert has_shared_noise([{"1": 0.1, "2": 0.2, "3": 0.15}, {"1": 0.2, "2": 0.3, "3": 0.25}])


def test_what_cannot_be_judged_is_no_claim():
    one = judge([{"1": 0.9}, {"1": 0.8}])
    assert one.p is None
    assert not one.is_winner
    assert one.best == 0
    best_alone = judge([{"1": 0.99}, {"1": 0.8, "2": 0.81}, {"1": 0.7, "2": 0.71}])
    assert best_alone.p is None
    assert best_alone.best == 0
    assert not best_alone.is_winner
    other_alone = judge([{"1": 0.99, "2": 0.98, "3": 0.985}, {"1": 0.8, "2": 0.81, "3": 0.805}, {"1": 0.7}])
    assert other_alone.is_winner
    assert other_alone.unjudged == [2]
    assert other_alone.p_holm[2] is None
    assert judge([{"1": 0.9, "2": 0.9}]).p is None
    same = judge([{"1": 0.5, "2": 0.5}, {"1": 0.5, "2": 0.5}])
    assert same.p == pytest.approx(1.0)
    assert not same.is_winner
    assert same.contenders == [1]


def test_a_metric_in_steps_scatters_at_least_by_its_step():
    """Two of two images right against one of two, twice each: chance does that once in eight."""
    assert not judge([{"1": 1.0, "2": 1.0}, {"1": 0.5, "2": 0.5}]).is_winner
    every = {str(seed): 1.0 for seed in range(5)}
    assert judge([every, dict.fromkeys(every, 0.5), dict.fromkeys(every, 0.0)]).is_winner


def test_names_no_winner_without_a_rival():
    groups = next(searches(1, [0, 0, 0, -30], seed=5))
    verdict = judge(groups)
    assert not verdict.is_winner
    assert 3 not in verdict.contenders
    assert verdict.p_holm[3] < 1e-6
    assert verdict.p_holm[verdict.best] is None


# --- against independent references ---------------------------------------------------------------------


@pytest.mark.parametrize("num", [2, 3, 5, 12])
def test_the_interval_is_that_of_students_t(num):
    values = list(np.random.default_rng(num).normal(0.8, 0.05, num))
    mean, half_width = confidence_interval(values)
    low, high = stats.t.interval(0.95, num - 1, np.mean(values), stats.sem(values))
    assert mean == pytest.approx(np.mean(values), rel=1e-12)
    assert half_width == pytest.approx((high - low) / 2, rel=1e-9)
    assert variance(values) == pytest.approx(np.var(values, ddof=1), rel=1e-12)


def test_the_interval_has_at_least_the_scatter_of_a_step():
    assert confidence_interval([0.7]) == (0.7, None)
    width_of_step = stats.t.ppf(0.975, 2) * np.sqrt(0.1**2 / 12 / 3)
    assert confidence_interval([0.7, 0.7, 0.7], step=0.1)[1] == pytest.approx(width_of_step)
    # variance 1 of these values; a step of sqrt(12) has the same
    widths = [confidence_interval([0.0, 1.0, 2.0], step)[1] for step in (0, 12**0.5 * 0.999, 12**0.5 * 1.001)]
    assert widths[0] == widths[1] == pytest.approx(stats.t.ppf(0.975, 2) / np.sqrt(3))
    assert widths[2] == pytest.approx(widths[0] * 1.001)


def test_the_resolution_is_the_smallest_difference():
    assert resolution([0.75, 0.25, 0.25, 0.875]) == 0.125
    assert resolution([0.25, 0.25]) == 0.0
    assert resolution([]) == 0.0


PATTERN = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) / np.sqrt(2.5)  # mean 0, variance 1


def shifted(*means, num_seeds=5):
    """Groups with the same scatter (variance 1) around these means."""
    return [{str(seed): mean + value for seed, value in enumerate(PATTERN[:num_seeds])} for mean in means]


ERROR = np.sqrt(2 / 5)  # standard error of a difference between two of them


@pytest.mark.parametrize(("factor", "is_winner"), [(0.99, False), (1.01, True)])
def test_the_verdict_of_two_changes_at_five_percent(factor, is_winner):
    critical = stats.t.ppf(0.975, 8) * ERROR
    groups = shifted(0, factor * critical)
    verdict = judge(groups, is_paired=False)
    reference = stats.ttest_ind(*([*group.values()] for group in groups))
    assert verdict.is_winner is is_winner
    assert verdict.best == 1
    assert verdict.p == pytest.approx(reference.pvalue, rel=1e-3)
    assert verdict.p_holm == [pytest.approx(reference.pvalue, rel=1e-9), None]
    assert verdict.contenders == ([] if is_winner else [0])


@pytest.mark.parametrize(("factor", "could_be_second"), [(0.999, True), (1.001, False)])
def test_who_is_close_to_the_second_counts(factor, could_be_second):
    """With three candidates the p of a lead over two others; with the third out of reach Student's p of two."""
    t = 2.5
    groups = shifted(t * ERROR, 0, -REACH * factor * ERROR)
    verdict = judge(groups, is_paired=False)
    of_two = 2 * stats.t.sf(t, 12)
    if could_be_second:
        assert verdict.p == pytest.approx(three_equal_p(t, 12), rel=2e-3)
        assert verdict.p != pytest.approx(of_two, rel=0.1)
    else:
        assert verdict.p == pytest.approx(of_two, rel=1e-3)


def three_equal_p(t, freedom):
    """Adaptive integration: one of three equal normal means leads both others by t estimated standard errors."""

    def given_scatter(u):
        def integrand(x):
            return stats.norm.pdf(x) * stats.norm.cdf(x - t * np.sqrt(2) * u) ** 2

        return 3 * integrate.quad(integrand, -8, 8)[0]

    density = stats.chi(freedom, scale=1 / np.sqrt(freedom)).pdf
    return integrate.quad(lambda u: density(u) * given_scatter(u), 0, 3)[0]


@pytest.mark.parametrize("t", [0.0, 0.7, 2.2])
def test_the_lead_of_three_by_adaptive_integration(t):
    assert lead_p_value(t, 12, 3) == pytest.approx(three_equal_p(t, 12), rel=2e-3)


def test_limits_of_the_lead():
    assert lead_p_value(0.0, 8, 2) == 1.0
    assert lead_p_value(math.inf, 8, 2) == 0.0
    assert lead_p_value(-math.inf, 8, 2) == 1.0
    assert lead_p_value(1.0, 8, 1) == 0.0
    assert lead_p_value(2.0, 8, 3) < lead_p_value(2.0, 4, 3)
    assert lead_p_value(2.0, 8, 3) < lead_p_value(2.0, 8, 2), "to lead two others is rarer than to lead one"


def test_holm_by_hand():
    # sorted 0.005, 0.02, 0.03, 0.5 times 4, 3, 2, 1; never below the one before
    assert correct_by_holm([0.03, 0.005, 0.5, 0.02]) == pytest.approx([0.06, 0.02, 0.5, 0.06])
    assert correct_by_holm([0.9, 0.8]) == [1.0, 1.0]
    assert correct_by_holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert correct_by_holm([]) == []


def test_p_of_each_line_is_pooled_over_all_of_them():
    groups = shifted(0, 3.0, 1.5, 2.9)
    verdict = judge(groups, is_paired=False)
    raw = [2 * stats.t.sf(lead / ERROR, 16) for lead in (3.0, 1.5, 0.1)]
    assert verdict.best == 1
    assert verdict.p_holm[0] == pytest.approx(3 * raw[0])
    assert verdict.p_holm[2] == pytest.approx(2 * raw[1])
    assert verdict.p_holm[3] == pytest.approx(raw[2])
    assert verdict.contenders == [3, 2], "the best of them first"


def test_pairs_are_those_seeds_that_both_have():
    first = {"1": 0.9, "2": 0.8, "3": 0.95, "only here": 0.1}
    second = {"2": 0.75, "1": 0.7, "3": 0.8, "only there": 0.99}
    (difference,) = NoiseModel([first, second], is_paired=True).differences(0, [1])
    reference = stats.ttest_rel([0.9, 0.8, 0.95], [0.7, 0.75, 0.8])
    assert difference.p == pytest.approx(reference.pvalue)
    assert difference.freedom == reference.df == 2
    assert difference.mean / difference.error == pytest.approx(reference.statistic)
    # one common seed is too few: the groups are compared by their scatter
    (difference,) = NoiseModel([first, {"1": 0.7, "x": 0.75}], is_paired=True).differences(0, [1])
    assert difference.freedom == 4


def test_pairs_that_differ_by_the_same_have_the_scatter_of_a_step():
    (difference,) = NoiseModel([{"1": 0.5, "2": 0.75}, {"1": 0.25, "2": 0.5}], is_paired=True).differences(0, [1])
    assert difference.mean == 0.25
    assert difference.error == pytest.approx(np.sqrt(2 * 0.25**2 / 12 / 2))


def test_different_sizes_pooled_and_not():
    rng = np.random.default_rng(3)
    small, large = list(rng.normal(0, 1, 4)), list(rng.normal(1, 1, 9))
    model = NoiseModel([dict(enumerate(map(float, small))), dict(enumerate(map(float, large)))], is_paired=False)
    (difference,) = model.differences(0, [1])
    reference = stats.ttest_ind(small, large)
    assert model.has_equal_variances
    assert (difference.p, difference.freedom) == (pytest.approx(reference.pvalue), 11)
    wide = [100 * value for value in large]
    model = NoiseModel([dict(enumerate(map(float, small))), dict(enumerate(map(float, wide)))], is_paired=False)
    (difference,) = model.differences(0, [1])
    reference = stats.ttest_ind(small, wide, equal_var=False)
    assert not model.has_equal_variances
    assert difference.p == pytest.approx(reference.pvalue)
    assert difference.freedom == pytest.approx(reference.df)
    assert model.differences(0, []) == []


def test_bartlett_with_different_sizes_and_without_scatter():
    rng = np.random.default_rng(5)
    groups = [rng.normal(0, scale, size) for scale, size in ((1, 4), (2, 7), (1.5, 12))]
    variances, freedoms = [np.var(g, ddof=1) for g in groups], [len(g) - 1 for g in groups]
    assert bartlett_p_value(variances, freedoms) == pytest.approx(stats.bartlett(*groups).pvalue)
    assert bartlett_p_value([1.0, 0.0], [4, 4]) == 0.0
    assert bartlett_p_value([0.0, 0.0], [4, 4]) == 1.0
    assert bartlett_p_value([1.0], [4]) == 1.0
    assert bartlett_p_value([2.0, 2.0], [4, 4]) == pytest.approx(1.0)


def two_way_p(table):
    """p that rows (seeds) have no effect, from the sums of squares of a two-way layout; table (groups, seeds)."""
    num_groups, num_seeds = table.shape
    fitted = table.mean(0)[None] + table.mean(1)[:, None] - table.mean()
    between = num_groups * ((table.mean(0) - table.mean()) ** 2).sum() / (num_seeds - 1)
    within = ((table - fitted) ** 2).sum() / ((num_groups - 1) * (num_seeds - 1))
    return stats.f.sf(between / within, num_seeds - 1, (num_groups - 1) * (num_seeds - 1))


def test_shared_noise_is_the_f_test_of_a_two_way_layout():
    results = []
    for groups in searches(300, [0, 1, 5], shared=0.6, num_seeds=4, seed=8):
        table = np.array([[*group.values()] for group in groups])
        results.append(has_shared_noise(groups))
        assert results[-1] == (two_way_p(table) < 0.01)
    assert 50 < sum(results) < 250, "both sides of the limit"


def test_shared_noise_needs_two_groups_and_two_common_seeds():
    assert not has_shared_noise([])
    assert not has_shared_noise([{"1": 0.1, "2": 0.9}])
    assert not has_shared_noise([{"1": 0.1, "2": 0.9}, {"1": 0.1, "3": 0.9}])
    assert not has_shared_noise([{"1": 0.5, "2": 0.5}, {"1": 0.5, "2": 0.5}]), "nothing varies"
    # exactly the same course, with more seeds here and there
    assert has_shared_noise([{"1": 0.1, "2": 0.9, "x": 5.0}, {"1": 0.2, "2": 1.0, "y": -5.0}])


def test_groups_of_one_value_are_not_judged_but_may_be_best():
    groups = [{"1": 0.1}, *shifted(0.5, 0.4), {"1": 0.2}]
    verdict = judge(groups, is_paired=False)
    assert verdict.best == 1
    assert verdict.unjudged == [0, 3]
    assert [p is None for p in verdict.p_holm] == [True, True, False, True]
    best_alone = judge([*shifted(0.5, 0.4), {"1": 9.0}], is_paired=False)
    assert (best_alone.best, best_alone.p, best_alone.unjudged) == (2, None, [])
    assert judge(shifted(0.5, 0.5), is_paired=False).best == 0, "a tie keeps the first"
    two_each = judge([{"1": 0.1, "2": 0.2}, {"1": 0.3, "2": 0.5}], is_paired=False)
    assert (two_each.unjudged, two_each.p_holm[1]) == ([], None)
    assert two_each.p_holm[0] is not None
