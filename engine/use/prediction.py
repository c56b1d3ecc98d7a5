"""What predict.py prints: one row per image, with its likeliest classes, as a table, CSV or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.use.classifier import Classifier
from engine.use.evaluation import write_csv
from utils import UserError, printable

Row = dict[str, "str | float | None"]


def list_rows(net: Classifier, paths: Sequence[str], top: int) -> list[Row]:
    """One row per path: path, label_1, prob_1, ..., error."""
    top = min(top, len(net.classes))
    rows = []
    for path, result in zip(paths, net.probabilities(paths), strict=True):
        if isinstance(result, UserError):
            rows.append(make_row(path, [], top, error=str(result).removeprefix(f"{path}: ")))
            continue
        values, numbers = result.topk(top)
        names = [net.classes[number] for number in numbers.tolist()]
        rows.append(make_row(path, list(zip(names, values.tolist(), strict=True)), top))
    return rows


def make_row(path: str, likeliest: Sequence[tuple[str, float]], top: int, error: str = "") -> Row:
    """The row of an image: its `top` likeliest classes and their probabilities, or the reason why it has none."""
    row: Row = {"path": path}
    for rank in range(top):
        row[f"label_{rank + 1}"], row[f"prob_{rank + 1}"] = likeliest[rank] if likeliest else (None, None)
    return row | {"error": error}


def _cell(value: str | int | float | None) -> str:
    return f"{value:.4f}" if isinstance(value, float) else printable(str(value or ""))


def format_table(rows: Sequence[Row]) -> str:
    """The table for people: probabilities with four decimals, an error column only when there are errors."""
    from tabulate import tabulate

    columns = [column for column in rows[0] if column != "error" or any(row["error"] for row in rows)]
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    return tabulate(cells, columns, tablefmt="plain", disable_numparse=True)


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """The table as CSV, with all digits."""

    def exact(value: str | float | None) -> str | float | None:
        return f"{value:.9g}" if isinstance(value, float) else value

    write_csv(path, list(rows[0]), [[exact(value) for value in row.values()] for row in rows])
