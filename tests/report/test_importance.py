"""Importance of parameters on functions whose shares are known, and when there is none."""

import itertools
import math

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GroupKFold

from report.importance import (
    MAX_RUNS,
    MIN_SETTINGS,
    encode,
    explained_variance,
    fanova_shares,
    importance,
    is_logarithmic,
    to_feature,
)
from report.rows import Row

LEVELS = [0.0, 1.0, 2.0, 3.0]


def make_group(accuracy, status="done", num_seeds=1, **params):
    best = {"accuracy": accuracy}
    return [Row("a", {**params, "seed": s}, best, {}, 0, [], status, frozenset()) for s in range(num_seeds)]


def value_of(row: Row) -> float:
    value = row.best["accuracy"]
    return math.nan if value is None else value


def test_shares_of_a_sum_are_the_shares_of_its_variance():
    """y = 3 a + b over a full grid: 9 to 1, without interaction."""
    points = list(itertools.product(LEVELS, LEVELS))
    features = {"a": [a for a, _ in points] * 4, "b": [b for _, b in points] * 4}
    shares = fanova_shares(features, [3 * a + b for a, b in points] * 4)
    assert list(shares) == ["a", "b"], "largest first"
    assert shares["a"] == pytest.approx(0.9, abs=0.03)
    assert sum(shares.values()) == pytest.approx(1)


def test_categories_count_like_numbers():
    points = list(itertools.product("xyz", LEVELS))
    features = {"kind": [kind for kind, _ in points] * 4, "unused": [b for _, b in points] * 4}
    shares = fanova_shares(features, [float("xyz".index(kind)) for kind, _ in points] * 4)
    assert shares["kind"] > 0.97


def test_the_whole_way_on_a_known_function():
    groups = [make_group(0.1 * a, a=a, b=b, c="same") for a in LEVELS for b in LEVELS]
    shares, basis = importance(groups, ["a", "b", "c", "seed"], value_of)
    assert set(shares) == {"a", "b"}, "what does not vary has no share"
    assert shares["a"] > 0.9
    assert basis.startswith("fANOVA, n = 16 finished runs of 16 settings; R² 1.00 on unseen settings")


@pytest.mark.parametrize(("num", "is_enough"), [(MIN_SETTINGS - 1, False), (MIN_SETTINGS, True)])
def test_the_number_of_settings(num, is_enough):
    groups = [make_group(0.1 * i, a=float(i), b=float(i % 2), num_seeds=2) for i in range(num)]
    groups += [make_group(0.9, status="pruned", a=9.0, b=0.0), make_group(None, a=8.0, b=0.0)]
    _, basis = importance(groups, ["a", "b"], value_of)
    assert (basis == "8 finished settings are needed, there are 7") is not is_enough
    assert f"n = {2 * num} finished runs of {num} settings" in basis or not is_enough


def test_reasons_to_say_nothing():
    groups = [make_group(0.5, a=float(i), b=float(-i)) for i in range(9)]
    assert importance(groups, ["a", "b"], value_of) == ({}, "all 9 runs have the same value")
    assert importance(groups, ["a"], value_of)[1] == "one parameter differs, importance compares several"
    assert importance(groups, [], value_of)[1] == "no parameter differs, importance compares several"


def test_of_very_many_runs_every_nth_is_used(monkeypatch):
    used = []
    monkeypatch.setattr("report.importance.explained_variance", lambda f, values, s: used.append(values) or 0.0)
    for num in (MAX_RUNS, MAX_RUNS + 1):
        groups = [make_group(float(i), a=float(i), b=float(i % 7)) for i in range(num)]
        assert importance(groups, ["a", "b"], value_of)[0] == {}
    assert [len(values) for values in used] == [1000, 501]
    assert used[1][:3] == [0.0, 2.0, 4.0]


def test_the_explained_variance_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 1, 40), rng.uniform(0, 1, 40)
    values = a + 0.1 * rng.normal(size=40)
    settings = [i // 2 for i in range(40)]
    table, predicted = np.stack([a, b], 1), np.zeros(40)
    for train, test in GroupKFold(5, shuffle=True, random_state=0).split(table, values, settings):
        predicted[test] = (
            RandomForestRegressor(100, random_state=0).fit(table[train], values[train]).predict(table[test])
        )
    expected = 1 - ((values - predicted) ** 2).sum() / ((values - values.mean()) ** 2).sum()
    assert explained_variance([list(a), list(b)], list(values), settings) == pytest.approx(expected)
    assert 0.5 < expected < 1


def test_features():
    assert to_feature([1, 2.5]) == [1.0, 2.5]
    assert to_feature([1, "a"]) == ["1", "a"]
    assert to_feature([True, False]) == ["true", "false"]
    assert to_feature([None, [1]]) == ["", "[1]"]
    assert encode([1.0, 2.0]).tolist() == [[1.0], [2.0]]
    assert encode(["b", "a", "b"]).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert encode([0.001, 0.01, 1.0]).ravel() == pytest.approx(np.log([0.001, 0.01, 1.0]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 30.0], False),  # exactly 30 times
        ([1.0, 2.0, 30.1], True),
        ([1.0, 20.0, 100.0], False),  # the median is a fifth
        ([1.0, 19.9, 100.0], True),
        ([0.0, 1.0, 100.0], False),
        ([-1.0, 1.0, 100.0], False),
    ],
)
def test_when_an_axis_is_logarithmic(values, expected):
    assert is_logarithmic(values) is expected
