"""Choosing what a table shows: rows by --where, columns by --columns, every run at the same epoch."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeGuard

from folder.history import best_row, flat_metrics
from report.json_files import check_metrics
from report.rows import Problems, Row, total_seconds
from report.settings import format_value
from report.tables import make_lines, resolve_column
from utils import UserError, nearest

NumberTest: TypeAlias = Callable[[float, float], bool]

_CONDITION = re.compile(r"\s*([^=!<>]+?)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*")
_COMPARISONS: dict[str, NumberTest] = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}


# --- rows -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """NAME OPERATOR VALUE, as given to --where."""

    name: str
    operator: str  # = != < > <= >=
    value: object  # as JSON reads it, else the text

    def is_met_by(self, value: object) -> bool:
        if self.operator in _COMPARISONS:
            comparison = _COMPARISONS[self.operator]
            return _is_number(value) and _is_number(self.value) and comparison(value, self.value)
        is_same = value == self.value or (isinstance(value, str) and value == format_value(self.value))
        return is_same == (self.operator == "=")


def select_rows(rows: Sequence[Row], conditions: Sequence[str]) -> list[Row]:
    """The rows that meet all conditions on parameters or columns. UserError for a malformed one or an unknown name."""
    if not rows or not conditions:
        return list(rows)
    parsed = [parse_condition(condition) for condition in conditions]
    lines = [row.params | line for row, line in zip(rows, make_lines(rows, []), strict=True)]
    names = list(dict.fromkeys(name for line in lines for name in line))
    parsed = [replace(condition, name=resolve_column(condition.name, names, "--where")) for condition in parsed]
    return [
        row
        for row, line in zip(rows, lines, strict=True)
        if all(condition.is_met_by(line.get(condition.name)) for condition in parsed)
    ]


def parse_condition(text: str) -> Condition:
    """UserError when `text` is no condition, or asks for the order of something that is not a number."""
    match = _CONDITION.fullmatch(text)
    if not match:
        raise UserError(f"--where {text!r}: NAME=VALUE is expected, or one of != < > <= >=, as in 'ps=0.5'")
    name, symbol, written = match.groups()
    try:
        value = json.loads(written)
    except (ValueError, RecursionError):
        value = written
    if symbol in _COMPARISONS and not _is_number(value):
        raise UserError(f"--where {text!r}: {symbol} compares numbers, and {value!r} is not a number")
    return Condition(name, "=" if symbol == "==" else symbol, value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --- columns --------------------------------------------------------------------------------------------


def split_names(names: str | None) -> list[str]:
    """["a", "b"] for "a, b"."""
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def choose_columns(columns: Sequence[str], chosen: str) -> list[str]:
    """The columns that "a,b,c" names, in its order; a bare metric is its validation value. UserError for another."""
    names = split_names(chosen)
    if not names:
        raise UserError(f"--columns: names are expected, separated by commas; {nearest('', columns)}")
    return list(dict.fromkeys(resolve_column(name, columns, "--columns") for name in names))


# --- epochs ---------------------------------------------------------------------------------------------


def at_equal_epochs(rows: Sequence[Row]) -> tuple[int, list[Row], Problems]:
    """(the smallest number of epochs of any run, the rows as they were after that many, problems of the others).

    The rows need their history; those without one are left out.
    """
    rows = [row for row in rows if row.history]
    num_epochs = min((len(row.history) for row in rows), default=0)
    cut_rows: list[Row] = []
    problems: Problems = {}
    for row in rows:
        try:
            cut_rows.append(_cut_history(row, num_epochs))
        except (UserError, KeyError, TypeError) as error:
            problems[row.name] = f"malformed: {type(error).__name__} in its history: {error}"
    return num_epochs, cut_rows, problems


def _cut_history(row: Row, num_epochs: int) -> Row:
    """`row` as it was after `num_epochs`; test results belong to later weights, so they are dropped."""
    history = row.history[:num_epochs]
    best = best_row(history, row.best_metric, row.minimized) or history[-1]
    return replace(
        row,
        history=history,
        best=check_metrics(flat_metrics(best), "history"),
        last=check_metrics(flat_metrics(history[-1]), "history"),
        test={},
        num_epochs=num_epochs,
        seconds=total_seconds(history),
    )
