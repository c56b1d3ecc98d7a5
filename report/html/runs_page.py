"""report.html of the folder that holds several experiments: what is searched, curves, parameters, a table, pictures."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import params as params_module
from folder.history import HISTORY_SPLITS, join_column, split_column, validation_column
from include import PARAMS, RESOLVED
from params import ALIASES
from report.figures import history_metrics, series, shorten
from report.html.document import (
    REPORT,
    Link,
    link_pictures,
    link_to,
    provide_plotly,
    round_digits,
    state_from_remark,
    write_document,
)
from report.importance import is_logarithmic
from report.ownership import RESULTS_CSV, RESULTS_MD
from report.plots.curves import CURVES
from report.plots.parameters import IMPORTANCE, PARAMETERS
from report.plots.ranking import NUM_NAMED, RankedRuns, format_brief, is_number, name_replicates
from report.rows import Problems, Row
from report.settings import format_value
from report.tables import Line, Table, is_lower_better, make_table, mean_of
from utils import UserError

MAX_RUNS = 1000  # on one page
MAX_NUMBERS = 300_000  # in its curves; longer ones are thinned out
STATES = ("done", "running", "interrupted", "pruned", "failed", "killed", "created", "malformed")  # in this order


def write_runs_page(
    folder: Path, ranked: RankedRuns, problems: Problems, verdict: str = "", sort: str | None = None
) -> Path:
    """Write `folder`/report.html -> its path. The names of rows and problems are relative to `folder`."""
    path = Path(os.path.abspath(folder))
    rows = ranked.rows[:MAX_RUNS]
    table = Table()
    if rows:
        table = make_table(rows, sort)
        by_name = {line["folder"]: line for line in table.lines}
        table = Table(table.columns, [by_name[row.name] for row in rows])
    data = collect_data(ranked, rows, table) if rows else {}
    images = [path / name for name in (CURVES, PARAMETERS, IMPORTANCE)]
    values: dict[str, object] = {
        "searched": describe_search(path, ranked),
        "states": count_states(ranked, problems),
        "best_run": describe_best_run(path, ranked),
        "best_setting": describe_best_setting(ranked),
        "verdict": verdict,
        "num_runs": len(ranked.rows),
        "num_shown": len(rows),
        "runs": [list_cells(path, line, table.columns) for line in table.lines],
        "columns": list_columns(table),
        "metrics": curve_metrics(rows, ranked.metric),
        "metric": data.get("metric"),
        "replicates": next((name_replicates(group) for group in ranked.groups if len(group) > 1), ""),
        "has_axes": bool(data.get("axes")),
        "filter_example": f"{ranked.metric}<0.5" if ranked.minimize else f"{ranked.metric}>0.9",
        "unfinished": list_unfinished(path, problems),
        "num_unfinished": len(problems),
        "pictures": link_pictures(images, path),
        "files": [link_to(path / n, path) for n in (RESULTS_MD, RESULTS_CSV, PARAMS) if (path / n).exists()],
    }
    provide_plotly(path)
    write_document(path, "runs.html.j2", values, data, path)
    return folder / REPORT


# --- at the top -----------------------------------------------------------------------------------------


def describe_search(folder: Path, ranked: RankedRuns) -> dict[str, object] | None:
    """What the folder's params.json searches (key -> values), how, and what its runs show that it searched before.

    None when it searches nothing.
    """
    try:
        written = params_module.read(folder / PARAMS)
        space = dict(written.get("hyper_search") or {})
        how = dict(written.get("search") or {})
    except (UserError, OSError, ValueError, TypeError):
        return None
    if not space:
        return None
    settings = [f"{key} {format_value(value)}" for key, value in how.items() if value not in (None, "none", 1)]
    before = {}
    for key in ranked.keys:
        values = dict.fromkeys(format_brief(row.params.get(key)) for row in ranked.rows)
        if others := [value for value in values if not is_searched(value, space, key)]:
            before[key] = shorten(", ".join(others), 120)
    space = {key: shorten(format_space(values), 120) for key, values in space.items()}
    return {"space": space, "how": ", ".join(settings), "before": before}


def is_searched(value: str, space: Mapping[str, object], key: str) -> bool:
    """Whether a run's `value` of `key`, as text, can come from `space`. A range is not looked into."""
    names = [name for name in space if ALIASES.get(name, name) in (key, key.split(".")[0])]
    if not names:
        return False
    values = space[names[0]]
    listed = values.get("choice") if isinstance(values, dict) else values
    if not isinstance(listed, list) or ALIASES.get(names[0], names[0]) != key:
        return True  # a range; or a section, whose parts are columns of their own
    return value in map(format_brief, listed)


def format_space(values: object) -> str:
    """The values that one parameter of hyper_search may take, as readable text."""
    if isinstance(values, dict) and isinstance(values.get("choice"), list):
        values = values["choice"]
    if isinstance(values, list):
        return ", ".join(map(format_brief, values))
    if isinstance(values, dict) and {"min", "max"} <= values.keys():
        kinds = [word for key, word in (("log", "logarithmic"), ("int", "whole numbers")) if values.get(key)]
        limits = f"{format_value(values['min'])} to {format_value(values['max'])}"
        return f"{limits} ({', '.join(kinds)})" if kinds else limits
    return format_value(values)


def count_states(ranked: RankedRuns, problems: Mapping[str, str]) -> dict[str, int]:
    """State -> number of folders."""
    names = {row.name for row in ranked.rows}
    states = Counter(row.status for row in ranked.rows)
    states.update(state_from_remark(problems[name]) for name in problems.keys() - names)
    order = sorted(states, key=lambda state: STATES.index(state) if state in STATES else len(STATES))
    return {state: states[state] for state in order}


def describe_best_run(folder: Path, ranked: RankedRuns) -> dict[str, object] | None:
    """None when no run has a value."""
    rows = [row for row in ranked.rows if math.isfinite(ranked.value(row))]
    if not rows:
        return None
    best = (min if ranked.minimize else max)(rows, key=ranked.value)
    return {
        "link": link_run(folder, best.name, 100),
        "metric": ranked.metric.replace("_", " "),
        "value": f"{ranked.value(best):.4f}",
        "epoch": best.best.get("epoch"),
    }


def describe_best_setting(ranked: RankedRuns) -> dict[str, object] | None:
    """None when the best setting has no replicates, or one without a value."""
    group = ranked.groups[0] if ranked.groups else []
    values = list(map(ranked.value, group))
    if len(group) < 2 or not all(map(math.isfinite, values)):
        return None
    metric = ranked.metric.replace("_", " ")
    return {"label": ranked.label(group), "metric": metric, "value": f"{mean_of(values):.4f}"}


def list_unfinished(folder: Path, problems: Mapping[str, str]) -> list[tuple[Link, str]]:
    """The first folders that are not done, and why."""
    first = list(problems.items())[:MAX_RUNS]
    return [(link_to(folder / name, folder, name), shorten(remark, 300)) for name, remark in first]


# --- the table ------------------------------------------------------------------------------------------


def link_run(folder: Path, name: str, length: int) -> Link:
    """A link to the page of a run; to its folder when another kit wrote it, and it has no page."""
    run = folder / name if (folder / name).is_dir() else Path(os.path.abspath(name))
    is_ours = (run / RESOLVED).exists()
    return link_to(run / REPORT if is_ours else run, folder, shorten(name, length))


def list_columns(table: Table) -> list[dict[str, object]]:
    return [
        {"name": name, "is_number": all(isinstance(line.get(name), int | float | None) for line in table.lines)}
        for name in table.columns
    ]


def list_cells(folder: Path, line: Line, columns: Sequence[str]) -> dict[str, object]:
    """One line of the table: the run's name, a link to its page, and the other cells."""
    name = str(line["folder"])
    link = link_run(folder, name, 120)
    return {"name": name, "link": link, "cells": [format_page_cell(c, line.get(c)) for c in columns if c != "folder"]}


def format_page_cell(column: str, value: object) -> str:
    """A cell of the page's table; metrics with four decimals."""
    if isinstance(value, float) and split_column(column)[0]:
        return f"{value:.4f}"
    return "" if value is None or value == "" else shorten(format_value(value), 60)


# --- data for the script --------------------------------------------------------------------------------


def collect_data(ranked: RankedRuns, rows: Sequence[Row], table: Table) -> dict[str, object]:
    """Cells, curves and axes as the page's script reads them."""
    rank_of = {row.name: rank for rank, group in enumerate(ranked.groups) for row in group}
    params = {key for row in rows for key in row.params}
    metrics = curve_metrics(rows, ranked.metric)

    # Every n-th epoch, so that all curves together stay below MAX_NUMBERS.
    num_numbers = sum(len(row.history) for row in rows) * 2 * len(metrics)
    stride = max(1, math.ceil(num_numbers / MAX_NUMBERS))
    runs = []
    for row, line in zip(rows, table.lines, strict=True):
        cells = [to_script_value(line.get(column)) for column in table.columns]
        runs.append(
            {"name": row.name, "rank": rank_of[row.name], "cells": cells} | collect_curves(row, metrics, stride)
        )
    axes = collect_axes(ranked, table)
    return {
        "runs": runs,
        "columns": [describe_column(column, params, rows) for column in table.columns],
        "axes": axes if len(axes) > 1 else [],
        "metric": ranked.metric if ranked.metric in metrics else "loss",
        "minimize": ranked.minimize,
        "num_named": NUM_NAMED,
        "labels": [shorten(ranked.label(group), 120) for group in ranked.groups],
    }


def curve_metrics(rows: Sequence[Row], metric: str) -> list[str]:
    """The metrics that have curves in any of the first 50 runs."""
    return history_metrics([epoch for row in rows[:50] for epoch in row.history], [metric])


def describe_column(column: str, params: set[str], rows: Sequence[Row]) -> dict[str, object]:
    """Its kind, and whether a first click sorts it upward."""
    split, metric = split_column(column)
    kind = "name" if column == "folder" else "parameter" if column in params else "other"
    return {"name": column, "kind": kind, "ascending": not split or is_lower_better(rows, metric)}


def to_script_value(value: object) -> object:
    """Numbers stay numbers; anything else is text."""
    return value if value is None or is_number(value) else format_value(value)


def collect_axes(ranked: RankedRuns, table: Table) -> list[dict[str, object]]:
    """The axes of the parallel coordinates: one for each parameter, then the metric."""
    axes = []
    for place, column in enumerate(table.columns):
        if column in ranked.keys or column == validation_column(ranked.metric):
            values = [line.get(column) for line in table.lines]
            numbers = [float(value) for value in values if is_number(value)]
            is_log = len(numbers) == len(values) and is_logarithmic(numbers)
            axes.append({"name": column, "place": place, "log": is_log})
    return axes


def collect_curves(row: Row, metrics: Sequence[str], stride: int) -> dict[str, object]:
    """Every `stride`-th epoch, and the last."""
    history = [epoch for number, epoch in enumerate(row.history) if number % stride == 0 or epoch is row.history[-1]]
    names = [join_column(split, metric) for split in HISTORY_SPLITS for metric in metrics]
    curves = {name: series(history, name) for name in names}
    curves = {name: list(map(round_digits, curve)) for name, curve in curves.items() if any(map(math.isfinite, curve))}
    return {"epochs": [int(epoch) for epoch in series(history, "epoch") if math.isfinite(epoch)], "series": curves}
