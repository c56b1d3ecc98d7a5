"""Runs in order: which are the best, by which metric, and what they are called. All figures of many runs start here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from folder.history import split_column
from report.rows import Row
from report.settings import REPLICATE_KEYS, differing_keys, format_value, group_replicates, setting_keys
from report.tables import is_lower_better, make_table, mean_of, most_common_metric

NUM_NAMED = 10  # settings with a colour and a line in the legend


@dataclass(frozen=True)
class RankedRuns:
    """Runs in order, and the metric that ranks them."""

    rows: list[Row]  # best first
    groups: list[list[Row]]  # the same rows by setting, best first
    keys: list[str]  # the parameters that differ, without seed and fold
    metric: str  # its validation value ranks the runs
    minimize: bool

    def value(self, row: Row) -> float:
        """The validation value of the metric with the best weights; NaN when there is none."""
        value = row.best.get(self.metric)
        return float(value) if isinstance(value, int | float) else math.nan

    def label(self, group: Sequence[Row]) -> str:
        """The parameters that distinguish a setting, for a legend."""
        text = ", ".join(f"{key} {format_brief(group[0].params.get(key))}" for key in self.keys)
        if not text or len(text) > 90:
            text = group[0].name if len(group) == 1 or text else ""
        count = f"{len(group)} {name_replicates(group)}" if len(group) > 1 else ""
        return f"{text} ({count})" if text and count else text or count


def name_replicates(rows: Sequence[Row]) -> str:
    """How the runs of a setting differ: "seeds", "folds" or "seeds and folds"."""
    keys = differing_keys(rows)
    return " and ".join(f"{key}s" for key in REPLICATE_KEYS if key in keys) or "runs"


def format_brief(value: object) -> str:
    """A parameter for a legend or an axis: three digits, "none" for null."""
    return f"{value:.3g}" if isinstance(value, float) else format_value(value) or "none"


def rank_runs(rows: Sequence[Row], sort: str | None = None) -> RankedRuns:
    """`rows` best first. sort: a metric (its validation value) or any column. UserError for an unknown one."""
    # The order of the runs is that of their table.
    by_name = {row.name: row for row in rows}
    ordered = [by_name[str(line["folder"])] for line in make_table(rows, sort).lines]

    # Ranked by the metric that `sort` names; by the most common one when it names another column.
    metric = most_common_metric(rows)
    split, sort_name = split_column(sort or metric)
    is_metric = split in ("", "val") and any(sort_name in row.best for row in rows)
    metric = sort_name if is_metric else metric
    minimize = is_lower_better(rows, metric)
    keys = setting_keys(differing_keys(ordered))
    ranked = RankedRuns(ordered, group_replicates(ordered), keys, metric, minimize)

    # Settings in the order of their means.
    if is_metric:

        def rank(group: list[Row]) -> float:
            mean = mean_of(value for value in map(ranked.value, group) if math.isfinite(value))
            if mean is None:
                return math.inf
            return mean if minimize else -mean

        ranked.groups.sort(key=rank)
    return ranked


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
