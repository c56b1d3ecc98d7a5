"""How much each parameter matters for a metric: shares of its variance over the finished runs."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, TypeAlias

from report.rows import Row
from report.settings import format_value

if TYPE_CHECKING:
    import numpy as np

MIN_SETTINGS = 8  # with fewer, no shares are given
MAX_RUNS = 1000  # of more, every n-th is used
MIN_R2 = 0.05  # explained variance below which no shares are given
SEED = 0
NUM_TREES = 32

Feature: TypeAlias = list[float] | list[str]  # one parameter's value in each run


def importance(
    groups: Sequence[Sequence[Row]], keys: Sequence[str], value_of: Callable[[Row], float]
) -> tuple[dict[str, float], str]:
    """(parameter -> its share of the metric's variance, what this rests on); ({}, reason) when that would mislead.

    groups: settings, each with its replicates. Only runs that are done count: a pruned run had fewer epochs. The
    shares come from fANOVA (Hutter et al., "An Efficient Approach for Assessing Hyperparameter Importance", ICML
    2014) as Optuna implements it. It would give shares for pure noise, too, so a forest must first predict settings
    that it has not seen.
    """
    # The finished runs and the parameters that vary among them.
    done = [[row for row in group if row.is_done and math.isfinite(value_of(row))] for group in groups]
    done = [group for group in done if group]
    numbered = [(number, row) for number, group in enumerate(done) for row in group]
    keys = [key for key in keys if len({json.dumps(row.params.get(key), sort_keys=True) for _, row in numbered}) > 1]

    # Reasons to give no shares.
    if len(keys) < 2:
        return {}, f"{'one parameter differs' if keys else 'no parameter differs'}, importance compares several"
    if len(done) < MIN_SETTINGS:
        return {}, f"{MIN_SETTINGS} finished settings are needed, there are {len(done)}"
    values = [value_of(row) for _, row in numbered]
    if max(values) == min(values):
        return {}, f"all {len(numbered)} runs have the same value"

    # Check that a forest predicts settings that it has not seen.
    step = math.ceil(len(numbered) / MAX_RUNS)
    numbered, values = numbered[::step], values[::step]
    features = {key: to_feature([row.params.get(key) for _, row in numbered]) for key in keys}
    settings = [number for number, _ in numbered]
    r2 = explained_variance(list(features.values()), values, settings)
    basis = f"n = {len(numbered)} finished runs of {len(set(settings))} settings"
    if r2 <= MIN_R2:
        return {}, f"{basis}, and the parameters do not predict the value of an unseen one (R² {r2:.2f})"
    return fanova_shares(features, values), f"fANOVA, {basis}; R² {r2:.2f} on unseen settings"


def to_feature(values: Sequence[object]) -> Feature:
    """Numbers as floats; anything else, and mixtures, as text."""
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return numbers if len(numbers) == len(values) else [format_value(value) for value in values]


def numbers_of(feature: Feature) -> list[float] | None:
    """The feature when it is made of numbers, None when it is text."""
    numbers = [value for value in feature if isinstance(value, float)]
    return numbers if len(numbers) == len(feature) else None


def is_logarithmic(values: Sequence[float]) -> bool:
    """True if numbers look drawn on a logarithmic scale: a wide span, and most of them far below the largest."""
    return min(values) > 0 and max(values) > 30 * min(values) and median(values) < max(values) / 5


def explained_variance(features: Sequence[Feature], values: Sequence[float], settings: Sequence[int]) -> float:
    """R² of a random forest on settings that it has not seen (5-fold); at or below 0 when it has learned nothing.

    settings: the number of each run's setting; the replicates of a setting are never on both sides of a split.
    """
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.metrics import r2_score
    from sklearn.model_selection import GroupKFold, cross_val_predict

    table = np.column_stack([encode(feature) for feature in features])  # (runs, inputs)
    forest = RandomForestRegressor(100, random_state=SEED)
    folds = GroupKFold(min(5, len(set(settings))), shuffle=True, random_state=SEED)
    predicted = cross_val_predict(forest, table, values, groups=settings, cv=folds)
    return float(r2_score(values, predicted))


def encode(feature: Feature) -> np.ndarray:
    """(runs, 1) for numbers (their logarithm if they span decades), (runs, categories) one-hot for text."""
    import numpy as np

    numbers = numbers_of(feature)
    if numbers is not None:
        column = np.asarray(numbers, float)[:, None]
        return np.log(column) if is_logarithmic(numbers) else column
    categories = sorted({str(value) for value in feature})
    return np.asarray([[value == category for category in categories] for value in feature], float)


def fanova_shares(features: Mapping[str, Feature], values: Sequence[float]) -> dict[str, float]:
    """Parameter -> share of the variance by Optuna's fANOVA, largest first; they add up to 1."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    space: dict[str, BaseDistribution] = {}
    for key, feature in features.items():
        numbers = numbers_of(feature)
        if numbers is None:
            space[key] = CategoricalDistribution(sorted({str(value) for value in feature}))
        else:
            space[key] = FloatDistribution(min(numbers), max(numbers), log=is_logarithmic(numbers))
    points = [dict(zip(features, point, strict=True)) for point in zip(*features.values(), strict=True)]
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study()
        for point, value in zip(points, values, strict=True):
            study.add_trial(optuna.trial.create_trial(params=point, distributions=space, value=value))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = FanovaImportanceEvaluator(n_trees=NUM_TREES, seed=SEED)
            shares = get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {key: float(share) for key, share in shares.items()}
