"""Rows -> tables: the columns, the lines and their order. As text: report/formats.py. Reads and writes no file."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from folder.history import TEST_LOOKS, is_minimized, join_column, split_column, validation_column
from report.json_files import Metrics
from report.rows import Row
from report.settings import differing_keys, format_value
from report.statistics import confidence_interval, resolution
from report.tree import NaturalKey, natural_key
from utils import UserError, nearest

Line: TypeAlias = dict[str, object]  # column -> value


@dataclass(frozen=True)
class Table:
    """Columns and lines; every line has a value, or None, for every column."""

    columns: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)


# --- metrics and columns --------------------------------------------------------------------------------


def most_common_metric(rows: Sequence[Row]) -> str:
    """The most common best_metric among the runs."""
    return Counter(row.best_metric for row in rows).most_common(1)[0][0] if rows else "accuracy"


def metric_names(tables: Iterable[Metrics]) -> list[str]:
    """The metrics that occur in any of `tables`, loss first."""
    names = dict.fromkeys(name for table in tables for name in table if name != "epoch")
    return sorted(names, key=lambda name: name != "loss")


def is_lower_better(rows: Sequence[Row], metric: str) -> bool:
    return any(is_minimized(metric, row.minimized) for row in rows)


def resolve_column(name: str, columns: Sequence[str], flag: str) -> str:
    """The column called `name`, or val_`name`. UserError with the nearest name when there is neither."""
    for candidate in (validation_column(name), name):
        if candidate in columns:
            return candidate
    raise UserError(f"{flag}: there is no column {name!r}; {nearest(name, columns)}")


# --- one line per run -----------------------------------------------------------------------------------


def make_table(rows: Sequence[Row], sort: str | None = None, keys: Sequence[str] | None = None) -> Table:
    """One line per row, best first. UserError when `sort` is not a column.

    sort: a metric (its validation value) or any column. keys: differing_keys(rows), where they are known already.
    """
    lines = make_lines(rows, differing_keys(rows) if keys is None else keys)
    columns = list(lines[0]) if lines else []
    return Table(columns, sort_lines(lines, columns, rows, sort) if lines else [])


def make_lines(rows: Sequence[Row], keys: Sequence[str]) -> list[Line]:
    """One line per row, all with the same columns, in the order of the rows. keys: the parameters that are shown."""
    validated = metric_names(row.best for row in rows)
    ranked_by = most_common_metric(rows)
    tested = [row for row in rows if row.test]
    test_metrics = list(dict.fromkeys(row.best_metric for row in tested))
    has_size = any(row.num_parameters for row in rows)
    lines = []
    for row in rows:
        line: Line = {"folder": row.name}
        line |= {key: row.params.get(key) for key in keys}
        line["best_epoch"] = row.best.get("epoch")
        line["epochs"] = row.num_epochs or None  # unknown where another kit kept no log
        line |= {validation_column(name): row.best.get(name) for name in validated}
        line[join_column("last", ranked_by)] = row.last.get(ranked_by)
        line |= {join_column("test", name): row.test.get(name) for name in test_metrics}
        if tested:
            line[TEST_LOOKS] = row.num_looks
        if has_size:
            line["num_parameters"] = row.num_parameters
        line["seconds"] = round(row.seconds, 1) if row.num_epochs else None
        line["status"] = row.status
        lines.append(line)
    return lines


# --- order ----------------------------------------------------------------------------------------------


def sort_lines(lines: Sequence[Line], columns: Sequence[str], rows: Sequence[Row], sort: str | None) -> list[Line]:
    """`lines` with the best first for a metric, the smallest first for any other column; empty cells come last."""
    column = sort_column(columns, rows, sort)
    split, metric = split_column(column)
    sign = -1 if split and not is_lower_better(rows, metric) else 1

    def sort_key(line: Line) -> tuple[int, float, NaturalKey, NaturalKey]:
        value, name = line[column], natural_key(str(line["folder"]))
        if value is None:
            return (2, 0, [], name)
        if isinstance(value, int | float):
            return (0, sign * value, [], name)
        return (1, 0, natural_key(format_value(value)), name)

    return sorted(lines, key=sort_key)


def sort_column(columns: Sequence[str], rows: Sequence[Row], sort: str | None) -> str:
    """The column that `sort` means; without `sort`, that of the most common best_metric."""
    if sort is None:
        sort = most_common_metric(rows)
        if validation_column(sort) not in columns:
            return "folder"
    return resolve_column(sort, columns, "--sort")


# --- one line per setting -------------------------------------------------------------------------------


def name_group(group: Sequence[Row]) -> str:
    """The common part of the folders' names: learning_rate_0.1… for ..._seed_0 and ..._seed_1."""
    if len(group) == 1:
        return group[0].name
    common = re.sub(r"(_*(seed|fold))?[_\-./]*$", "", os.path.commonprefix([row.name for row in group]))
    return f"{common}…" if common else f"{group[0].name} and {len(group) - 1} more"


def make_group_lines(
    groups: Sequence[Sequence[Row]], counted: Sequence[Sequence[Row]], metric: str, keys: Sequence[str]
) -> list[Line]:
    """One line per group of replicates.

    counted: the runs of each group that the means are over; n is the number of them that have the metric.
    """
    rows = [row for group in groups for row in group]
    other_metrics = [name for name in metric_names(row.best for row in rows) if name != metric]
    has_test = any(row.test for row in rows)
    has_size = any(row.num_parameters for row in rows)
    step = resolution([value for runs in counted for value in metric_values(runs, metric)])
    lines = []
    for group, runs in zip(groups, counted, strict=True):
        values = metric_values(runs, metric)
        mean, half_width = confidence_interval(values, step) if values else (None, None)
        line: Line = {"folder": name_group(group)}
        line |= {key: group[0].params.get(key) for key in keys}
        line |= {"n": len(values), validation_column(metric): mean, "interval": half_width, "p": None}
        line[join_column("last", metric)] = mean_of(row.last.get(metric) for row in runs)
        line |= {validation_column(name): mean_of(row.best.get(name) for row in runs) for name in other_metrics}
        if has_test:
            line[join_column("test", metric)] = mean_of(row.test.get(metric) for row in runs)
            looks = [row.num_looks for row in group if row.num_looks is not None]
            line[TEST_LOOKS] = sum(looks) if looks else None
        line["epochs"] = mean_of(row.num_epochs or None for row in runs)
        if has_size:
            line["num_parameters"] = group[0].num_parameters
        line["seconds"] = mean_of(round(row.seconds, 1) if row.num_epochs else None for row in runs)
        line["status"] = "done" if len(runs) == len(group) else f"{len(runs)} of {len(group)} done"
        lines.append(line)
    return lines


def metric_values(rows: Iterable[Row], metric: str) -> list[float]:
    """The validation values of the rows that have the metric."""
    values = (row.best.get(metric) for row in rows)
    return [value for value in values if value is not None]


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of the numbers among `values`; None when there are none."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
