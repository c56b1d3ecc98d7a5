"""Rows as the text of a CSV file that any reader splits into the same cells, and that no spreadsheet runs."""

import csv
import io
from collections.abc import Iterable

from utils import FORMULA


def csv_text(value: object) -> object:
    """`value` as a cell of a CSV file: text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def format_csv(rows: Iterable[Iterable[object]]) -> str:
    """The rows as CSV, each ended by a newline. utils.csv_value reads a cell of text back."""
    line = io.StringIO(newline="")
    # A cell with a carriage return is quoted because the writer's own line ends hold one.
    writer = csv.writer(line, lineterminator="\r\n")
    lines = []
    for row in rows:
        writer.writerow([csv_text(value) for value in row])
        lines.append(line.getvalue()[:-2] + "\n")
        line.seek(0)
        line.truncate()
    return "".join(lines)
