"""How much each parameter matters for a metric: shares of its variance over the finished runs."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from report.rows import Row, show

if TYPE_CHECKING:
    import numpy as np

MIN_SETTINGS, MAX_RUNS, SEED, NUM_TREES = 8, 1000, 0, 32


def importance(
    groups: Sequence[Sequence[Row]], keys: Sequence[str], value: Callable[[Row], float]
) -> tuple[dict[str, float], str]:
    """(parameter -> its share of the variance of `value`, on what this rests); ({}, why not) when it would say nothing.

    groups: settings, each with its replicates. Only runs that are done count: a pruned one had fewer epochs. fANOVA
    (Hutter et al., "An Efficient Approach for Assessing Hyperparameter Importance", ICML 2014) as Optuna does it. A
    forest fits noise too, so one is tried on settings that it has not seen, and no shares are given when it fails.
    """
    done = [[row for row in group if row.status == "done" and math.isfinite(value(row))] for group in groups]
    done = [group for group in done if group]
    rows = [(number, row) for number, group in enumerate(done) for row in group]
    keys = [key for key in keys if len({json.dumps(row.params.get(key), sort_keys=True) for _, row in rows}) > 1]
    if len(keys) < 2:
        return {}, f"{'one parameter differs' if keys else 'no parameter differs'}, importance compares several"
    if len(done) < MIN_SETTINGS:
        return {}, f"{MIN_SETTINGS} settings that are done are needed, there are {len(done)}"
    values = [value(row) for _, row in rows]
    if max(values) == min(values):
        return {}, f"all {len(rows)} runs have the same value"
    step = -(-len(rows) // MAX_RUNS)  # of very many, every n-th
    rows, values = rows[::step], values[::step]
    columns = {key: column([row.params.get(key) for _, row in rows]) for key in keys}
    explained = explained_variance(list(columns.values()), values, [number for number, _ in rows])
    ground = f"n = {len(rows)} finished runs of {len({number for number, _ in rows})} settings"
    if explained <= 0.05:
        return {}, f"{ground}, and the parameters do not predict the value of an unseen one (R² {explained:.2f})"
    return fanova(columns, values), f"fANOVA, {ground}; R² {explained:.2f} on settings not seen"


def column(values: Sequence[Any]) -> list[Any]:
    """Numbers as they are; anything else, and a mixture, as text."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values]
    return [show(value) for value in values]


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether numbers look like drawn on a logarithmic scale: they span much, and most are far below the greatest."""
    return min(values) > 0 and max(values) > 30 * min(values) and median(values) < max(values) / 5


def explained_variance(columns: Sequence[Sequence[Any]], values: Sequence[float], settings: Sequence[int]) -> float:
    """R² of a random forest on settings that it has not seen (5 parts), at most 1, at or below 0 when it knows nothing.

    columns: one list per parameter. settings: which replicates belong together: they are never on both sides.
    """
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import GroupKFold, cross_val_predict

    table = np.column_stack([encoded(column) for column in columns])  # (runs, features)
    forest = RandomForestRegressor(100, random_state=SEED)
    parts = GroupKFold(min(5, len(set(settings))), shuffle=True, random_state=SEED)
    predicted = cross_val_predict(forest, table, values, groups=settings, cv=parts)
    truth = np.asarray(values)
    return 1 - float(((truth - predicted) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def encoded(values: Sequence[Any]) -> np.ndarray:
    """(runs, 1) of a number (its logarithm where it spans decades), (runs, categories) of text, one-hot."""
    import numpy as np

    if isinstance(values[0], float):
        numbers = np.asarray(values, float)[:, None]
        return np.log(numbers) if is_logarithmic(values) else numbers
    names = sorted(set(values))
    return np.asarray([[value == name for name in names] for value in values], float)


def fanova(columns: dict[str, list[Any]], values: Sequence[float]) -> dict[str, float]:
    """Parameter -> share of the variance, by Optuna's fANOVA; they add up to 1."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    space: dict[str, Any] = {
        key: FloatDistribution(min(column), max(column), log=is_logarithmic(column))
        if isinstance(column[0], float)
        else CategoricalDistribution(sorted(set(column)))
        for key, column in columns.items()
    }
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study()
        trials = zip(zip(*columns.values(), strict=True), values, strict=True)
        study.add_trials(
            [
                optuna.trial.create_trial(
                    params=dict(zip(columns, point, strict=True)), distributions=space, value=value
                )
                for point, value in trials
            ]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = FanovaImportanceEvaluator(n_trees=NUM_TREES, seed=SEED)
            shares = get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {key: float(share) for key, share in shares.items()}
