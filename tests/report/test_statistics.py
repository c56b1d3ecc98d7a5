"""Intervals and tests over seeds and folds: against scipy.stats, and how often a winner is declared."""

import numpy as np
import pytest
from scipy import stats

from report.statistics import (
    NoiseModel,
    bartlett_p_value,
    confidence_interval,
    correct_by_holm,
    has_shared_noise,
    judge,
    lead_p_value,
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
