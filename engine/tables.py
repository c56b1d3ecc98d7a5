"""Rows -> tables: which columns, in which order, as Markdown and CSV. Reads and writes nothing."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from engine.figures import shorten
from engine.report import Row, differing, natural, show
from utils import UserError, nearest

Cells = dict[str, Any]  # column -> value
TIMES = {"seconds"}


def make_table(rows: Sequence[Row], sort: str | None = None) -> tuple[list[str], list[Cells]]:
    """(columns, one dictionary per row), best first. `sort`: a metric (validation) or any column."""
    keys = differing(rows)
    val = metric_columns(row.best for row in rows)
    tested = [row for row in rows if row.test]
    shown_tests = list(dict.fromkeys(row.best_metric for row in tested))
    cells = []
    for row in rows:
        line: Cells = {"folder": row.name} | {key: row.params.get(key) for key in keys}
        line |= {"best_epoch": row.best.get("epoch"), "epochs": len(row.history)}
        line |= {f"val_{name}": row.best.get(name) for name in val}
        line |= {f"test_{name}": row.test.get(name) for name in shown_tests}
        line |= {"test_looks": row.num_looks} if tested else {}
        line |= {"seconds": round(row.seconds, 1), "status": row.status}
        cells.append(line)
    columns = list(cells[0]) if cells else []
    return columns, sort_cells(cells, columns, rows, sort) if cells else []


def metric_columns(tables: Iterable[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for table in tables for name in table if name != "epoch")
    return sorted(names, key=lambda name: name != "loss")


def sort_cells(cells: list[Cells], columns: Sequence[str], rows: Sequence[Row], sort: str | None) -> list[Cells]:
    column = sort_column(columns, rows, sort)
    split, _, metric = column.partition("_")
    is_metric = split in ("val", "test") and column != "test_looks"
    minimized = any(metric in row.minimized for row in rows)
    sign = -1 if is_metric and not minimized else 1

    def key(line: Cells) -> tuple:
        value = line[column]
        is_number = isinstance(value, int | float)
        return (
            value is None,
            not is_number,
            sign * value if is_number else natural(show(value)),
            natural(line["folder"]),
        )

    return sorted(cells, key=key)


def sort_column(columns: Sequence[str], rows: Sequence[Row], sort: str | None) -> str:
    """The column that `sort` means; by default the metric that most of the runs were to be best in."""
    if sort is None:
        sort = Counter(row.best_metric for row in rows).most_common(1)[0][0]
        if f"val_{sort}" not in columns:
            return "folder"
    for name in (f"val_{sort}", sort):
        if name in columns:
            return name
    raise UserError(f"--sort: there is no column {sort!r}; {nearest(sort, columns)}")


def to_markdown(columns: Sequence[str], cells: Sequence[Cells]) -> str:
    """A Markdown table; metrics with four decimals."""
    from tabulate import tabulate

    def text(column: str, value: Any) -> str:
        if isinstance(value, float) and column.startswith(("val_", "test_")):
            return f"{value:.4f}"
        return shorten(show(value), 60).replace("|", "\\|") if value not in (None, "") else ""

    table = [[text(column, line.get(column)) for column in columns] for line in cells]
    is_number = [all(isinstance(line.get(c), int | float | None) for line in cells) for c in columns]
    align = ["right" if number else "left" for number in is_number]
    return tabulate(table, columns, tablefmt="github", disable_numparse=True, colalign=align if table else None)


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
    """The folders that are not done, as a Markdown list."""
    lines = [f"- `{name}`: {shorten(remark, 300)}" for name, remark in problems.items()]
    return "\n".join(["Not done:", "", *lines]) if lines else ""
