"""A CSV file that grows with the run. A continued run drops the rows of steps that it takes again."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from folder.csv_text import format_csv
from utils import csv_value, write_atomic


class Table:
    """Rows with a "step", appended to `path`. Nothing is written before the first row.

    start_step: the step that this start continues from: later rows are of an attempt that did not commit them.
    """

    def __init__(self, path: Path, start_step: int = 0):
        self.path = path
        self.start_step = start_step
        self.columns: list[str] = []

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        rows = list(rows)
        if not rows:
            return
        names = list(rows[0])
        if not self.columns or set(names) - set(self.columns):
            self._open(names)
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(format_csv([[blank(row.get(name)) for name in self.columns] for row in rows]))

    def _open(self, names: list[str]) -> None:
        """Write the rows that stay, with all columns, into a file of its own: hard links keep the old one."""
        kept = read_rows(self.path, None if self.columns else self.start_step)
        self.columns = list(dict.fromkeys([*(kept[0] if kept else []), *names]))
        self.path.parent.mkdir(exist_ok=True)
        lines: list[Iterable[object]] = [self.columns]
        lines += [[read_cell(row.get(name, "")) for name in self.columns] for row in kept]
        write_atomic(self.path, format_csv(lines).encode())


def blank(value: object) -> object:
    return "" if value is None else value


def read_cell(text: str) -> object:
    """A cell as it was before it was written: a number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return csv_value(text)


def read_rows(path: Path, last_step: int | None = None) -> list[dict[str, str]]:
    """The whole rows of a table, up to `last_step`. What is cut off or is no row is left out."""
    if not path.is_file():
        return []
    rows = []
    for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8", errors="replace"), newline="")):
        is_whole = None not in row and None not in row.values()
        step = row.get("step") or ""
        if is_whole and step.isascii() and step.isdigit() and (last_step is None or int(step) <= last_step):
            rows.append({str(name): str(value) for name, value in row.items()})
    return rows
