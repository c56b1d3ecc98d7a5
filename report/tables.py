"""Rows -> tables: which columns, in which order, as Markdown, CSV and LaTeX. Reads and writes nothing."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from folder.history import (
    TEST_LOOKS,
    best_row,
    flat_metrics,
    is_minimized,
    join_column,
    split_column,
    validation_column,
)
from report.figures import shorten
from report.rows import Row, differing, numbers, show
from report.tree import natural
from utils import UserError, nearest

Cells = dict[str, Any]  # column -> value
TIMES = {"seconds"}
MAX_ROWS, MAX_COLUMNS = 100, 16  # of a table that people read; CSV and JSON hold everything
_CONDITION = re.compile(r"\s*([^=!<>]+?)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*")
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}


# --- one line per run -----------------------------------------------------------------------------------


def make_table(
    rows: Sequence[Row], sort: str | None = None, keys: Sequence[str] | None = None
) -> tuple[list[str], list[Cells]]:
    """(columns, one dictionary per row), best first. `sort`: a metric (validation) or any column.

    `keys`: differing(rows), where that is known already.
    """
    cells = make_lines(rows, differing(rows) if keys is None else keys)
    columns = list(cells[0]) if cells else []
    return columns, sort_cells(cells, columns, rows, sort) if cells else []


def make_lines(rows: Sequence[Row], keys: Sequence[str]) -> list[Cells]:
    """One dictionary per row, all with the same columns, in the order of the rows."""
    val = metric_columns(row.best for row in rows)
    compared = compared_metric(rows)
    tested = [row for row in rows if row.test]
    shown_tests = list(dict.fromkeys(row.best_metric for row in tested))
    is_sized = any(row.num_parameters for row in rows)
    cells = []
    for row in rows:
        line: Cells = {"folder": row.name}
        for key in keys:
            line[key] = row.params.get(key)
        line["best_epoch"], line["epochs"] = row.best.get("epoch"), row.num_epochs
        for name in val:
            line[validation_column(name)] = row.best.get(name)
        line[join_column("last", compared)] = row.last.get(compared)
        for name in shown_tests:
            line[join_column("test", name)] = row.test.get(name)
        if tested:
            line[TEST_LOOKS] = row.num_looks
        if is_sized:
            line["num_parameters"] = row.num_parameters
        line["seconds"], line["status"] = round(row.seconds, 1), row.status
        cells.append(line)
    return cells


def compared_metric(rows: Sequence[Row]) -> str:
    """The metric that most of the runs were to be best in."""
    return Counter(row.best_metric for row in rows).most_common(1)[0][0] if rows else "accuracy"


def metric_columns(tables: Iterable[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for table in tables for name in table if name != "epoch")
    return sorted(names, key=lambda name: name != "loss")


def is_less_better(rows: Sequence[Row], metric: str) -> bool:
    return any(is_minimized(metric, row.minimized) for row in rows)


def sort_cells(cells: list[Cells], columns: Sequence[str], rows: Sequence[Row], sort: str | None) -> list[Cells]:
    """`cells` with the best first in a metric, the smallest first in any other column; nothing comes last."""
    column = sort_column(columns, rows, sort)
    split, metric = split_column(column)
    sign = -1 if split and not is_less_better(rows, metric) else 1

    def key(line: Cells) -> tuple:
        value = line[column]
        if value is None:
            return (2, 0, natural(line["folder"]))
        if isinstance(value, int | float):
            return (0, sign * value, natural(line["folder"]))
        return (1, natural(show(value)), natural(line["folder"]))

    return sorted(cells, key=key)


def sort_column(columns: Sequence[str], rows: Sequence[Row], sort: str | None) -> str:
    """The column that `sort` means; by default the metric that most of the runs were to be best in."""
    if sort is None:
        sort = compared_metric(rows)
        if validation_column(sort) not in columns:
            return "folder"
    return find_column(sort, columns, "--sort")


def find_column(name: str, columns: Sequence[str], flag: str) -> str:
    """The column called `name`, or that of the metric `name` on the validation split. UserError with the nearest."""
    for candidate in (validation_column(name), name):
        if candidate in columns:
            return candidate
    raise UserError(f"{flag}: there is no column {name!r}; {nearest(name, columns)}")


# --- choosing -------------------------------------------------------------------------------------------


def select(rows: Sequence[Row], conditions: Sequence[str]) -> list[Row]:
    """The rows that meet all conditions: NAME=VALUE, also with != < > <= >=, of a parameter or a column."""
    if not rows or not conditions:
        return list(rows)
    tests = [parse_condition(condition) for condition in conditions]
    lines = [row.params | line for row, line in zip(rows, make_lines(rows, []), strict=True)]
    known = list(dict.fromkeys(key for line in lines for key in line))
    named = [(find_column(name, known, "--where"), operator, value) for name, operator, value in tests]
    return [row for row, line in zip(rows, lines, strict=True) if all(_holds(line.get(n), o, v) for n, o, v in named)]


def parse_condition(text: str) -> tuple[str, str, Any]:
    """(name, operator, value). UserError when it is none, or orders what is no number."""
    found = _CONDITION.fullmatch(text)
    if not found:
        raise UserError(f"--where {text!r}: NAME=VALUE is expected, or one of != < > <= >=, as in 'ps=0.5'")
    name, operator, value = found.groups()
    operator = "=" if operator == "==" else operator
    try:
        value = json.loads(value)
    except (ValueError, RecursionError):
        pass
    if operator in _ORDER and not _is_number(value):
        raise UserError(f"--where {text!r}: {operator} compares numbers, and {value!r} is none")
    return name, operator, value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _holds(value: Any, operator: str, wanted: Any) -> bool:
    if operator in _ORDER:
        return _is_number(value) and _ORDER[operator](value, wanted)
    is_same = value == wanted or (isinstance(value, str) and value == show(wanted))
    return is_same == (operator == "=")


def choose_columns(columns: Sequence[str], wanted: str) -> list[str]:
    """The columns of a list "a,b,c", in its order; a bare metric is its validation value. UserError."""
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if not names:
        raise UserError(f"--columns: names are expected, with commas between them; {nearest('', columns)}")
    return list(dict.fromkeys(find_column(name, columns, "--columns") for name in names))


def at_equal_epochs(rows: Sequence[Row]) -> tuple[int, list[Row], dict[str, str]]:
    """(the smallest number of epochs that all have, the rows as they were then, what is the matter with others).

    Their history is needed.
    """
    rows = [row for row in rows if row.history]
    num = min((len(row.history) for row in rows), default=0)
    found, problems = [], {}
    for row in rows:
        try:
            found.append(_at(row, num))
        except (UserError, KeyError, TypeError) as error:
            problems[row.name] = f"malformed: {type(error).__name__} in its history: {error}"
    return num, found, problems


def _at(row: Row, num: int) -> Row:
    history = row.history[:num]
    best = best_row(history, row.best_metric, row.minimized) or history[-1]
    seconds = float(sum(line.get("seconds") or 0 for line in history))
    return replace(row, history=history, best=_validation(best), last=_validation(history[-1]), test={}, num_epochs=num,
                   seconds=seconds)  # fmt: skip


def _validation(line: dict[str, Any]) -> dict[str, Any]:
    return numbers(flat_metrics(line), "history")


# --- one line per group of replicates -------------------------------------------------------------------


def group_name(group: Sequence[Row]) -> str:
    """What the folders of a group have in common: learning_rate_0.1… for ..._seed_0 and ..._seed_1."""
    if len(group) == 1:
        return group[0].name
    common = os.path.commonprefix([row.name for row in group])
    return re.sub(r"(_*(seed|fold))?[_\-./]*$", "", common) + "…"


def make_group_lines(
    groups: Sequence[Sequence[Row]], counted: Sequence[Sequence[Row]], metric: str, keys: Sequence[str]
) -> list[Cells]:
    """One dictionary per group: means over `counted`, the runs of each that count; n is their number."""
    from report.statistics import interval, resolution

    rows = [row for group in groups for row in group]
    val = metric_columns(row.best for row in rows)
    is_tested, is_sized = any(row.test for row in rows), any(row.num_parameters for row in rows)
    step = resolution([row.best[metric] for runs in counted for row in runs if row.best.get(metric) is not None])
    cells = []
    for group, runs in zip(groups, counted, strict=True):
        values = [row.best[metric] for row in runs if row.best.get(metric) is not None]
        middle, width = interval(values, step) if values else (None, None)
        line: Cells = {"folder": group_name(group)} | {key: group[0].params.get(key) for key in keys}
        line |= {"n": len(values), validation_column(metric): middle, "interval": width, "p": None}
        line |= {join_column("last", metric): mean(row.last.get(metric) for row in runs)}
        line |= {validation_column(name): mean(row.best.get(name) for row in runs) for name in val if name != metric}
        if is_tested:
            line[join_column("test", metric)] = mean(row.test.get(metric) for row in runs)
            line[TEST_LOOKS] = sum(row.num_looks for row in group)
        line |= {"epochs": mean(row.num_epochs for row in runs)}
        line |= {"num_parameters": group[0].num_parameters} if is_sized else {}
        line["seconds"] = mean(round(row.seconds, 1) for row in runs)
        line["status"] = "done" if len(runs) == len(group) else f"{len(runs)} of {len(group)} done"
        cells.append(line)
    return cells


def mean(values: Iterable[Any]) -> float | None:
    """Of the numbers among `values`; None when there are none."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


# --- as text --------------------------------------------------------------------------------------------


def text_of(column: str, value: Any) -> str:
    """A cell as people read it; metrics with four decimals."""
    if value is None or value == "":
        return ""
    if isinstance(value, float):
        if column == "interval":
            return f"± {value:.4f}"
        if column in ("p", "seconds", "epochs"):
            return f"{value:.3f}" if column == "p" else f"{value:.1f}" if column == "seconds" else f"{value:g}"
        if split_column(column)[0]:
            return f"{value:.4f}"
    return f"{value:,}" if column == "num_parameters" else shorten(show(value), 100 if column == "folder" else 60)


def printable(text: str) -> str:
    """`text` without half characters, which a folder's name or a damaged file can bring in."""
    return text.encode("utf-8", "backslashreplace").decode()


def formatted(columns: Sequence[str], cells: Sequence[Cells], style: str, escape: Callable[[str], str]) -> str:
    from tabulate import tabulate

    table = [[escape(text_of(column, line.get(column))) for column in columns] for line in cells]
    is_number = [all(isinstance(line.get(c), int | float | None) for line in cells) for c in columns]
    align = ["right" if number else "left" for number in is_number]
    headers = [escape(column) for column in columns]
    return tabulate(table, headers, tablefmt=style, disable_numparse=True, colalign=align if table else None)


def to_markdown(columns: Sequence[str], cells: Sequence[Cells]) -> str:
    """A Markdown table; metrics with four decimals. What Markdown or HTML would take for a sign is escaped."""
    return formatted(columns, cells, "github", lambda text: re.sub(r"([\\|`*<\[\]])", r"\\\1", text))


def to_latex(columns: Sequence[str], cells: Sequence[Cells]) -> str:
    """A tabular with booktabs rules (\\usepackage{booktabs}); tabulate escapes what LaTeX would take for a sign."""
    return formatted(columns, cells, "latex_booktabs", str)


def to_csv(columns: Sequence[str], cells: Sequence[Cells]) -> str:
    """The table as CSV, every digit of every number. No times in it: the same runs give the same bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [column for column in columns if column not in TIMES]
    writer.writerow(columns)
    for line in cells:
        values = [line.get(column) for column in columns]
        writer.writerow([value if isinstance(value, int | float | str) else show(value) for value in values])
    return text.getvalue()


def describe_problems(problems: dict[str, str]) -> str:
    """The folders that are not done, as a Markdown list under how many there are of each kind."""
    kinds = Counter(remark.split(" ")[0].rstrip(":,") for remark in problems.values())
    counts = ", ".join(f"{num} {'created' if kind == 'not' else kind}" for kind, num in kinds.most_common())
    lines = [f"- `{name}`: {shorten(remark, 300)}".replace("\n", " ") for name, remark in problems.items()]
    return "\n".join([f"Not done: {counts}", "", *lines]) if lines else ""
