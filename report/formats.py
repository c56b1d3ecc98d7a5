"""Tables as text: Markdown, LaTeX and CSV."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

from folder.csv_text import format_csv
from folder.history import split_column
from report.figures import shorten
from report.settings import format_value
from report.tables import Table
from utils import printable

NOT_IN_CSV = {"seconds"}  # so that the same runs give the same bytes


def format_cell(column: str, value: object) -> str:
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
    if column == "num_parameters":
        return f"{value:,}"
    return printable(shorten(format_value(value), 100 if column == "folder" else 60))


def replace_surrogates(text: str) -> str:
    """`text` that can be written as UTF-8: file names and damaged JSON may hold unpaired surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def _tabulate(table: Table, style: str, escape: Callable[[str], str]) -> str:
    from tabulate import tabulate

    cells = [[escape(format_cell(column, line.get(column))) for column in table.columns] for line in table.lines]
    is_number = [all(isinstance(line.get(c), int | float | None) for line in table.lines) for c in table.columns]
    alignment = ["right" if number else "left" for number in is_number]
    headers = [escape(printable(column)) for column in table.columns]
    return tabulate(cells, headers, tablefmt=style, disable_numparse=True, colalign=alignment if cells else None)


def to_markdown(table: Table) -> str:
    """A Markdown table; characters that Markdown or HTML would interpret are escaped."""
    return _tabulate(table, "github", lambda text: re.sub(r"([\\|`*<\[\]])", r"\\\1", text))


def to_latex(table: Table) -> str:
    """A tabular with booktabs rules (\\usepackage{booktabs}); tabulate escapes what LaTeX would interpret."""
    return _tabulate(table, "latex_booktabs", str)


def to_csv(table: Table) -> str:
    """The table as CSV, numbers with all digits, without times."""
    columns = [column for column in table.columns if column not in NOT_IN_CSV]
    rows = ([line.get(column) for column in columns] for line in table.lines)
    cells = ([v if isinstance(v, int | float | str) else format_value(v) for v in values] for values in rows)
    return format_csv([columns, *cells])


def list_problems(problems: Mapping[str, str]) -> str:
    """The folders that are not done as a Markdown list, below the number of each kind; "" when all are done."""
    if not problems:
        return ""
    kinds = Counter(remark.split(" ")[0].rstrip(":,") for remark in problems.values())
    counts = ", ".join(f"{num} {'created' if kind == 'not' else kind}" for kind, num in kinds.most_common())
    items = [f"- `{name}`: {shorten(remark, 300)}".replace("\n", " ") for name, remark in problems.items()]
    items = [printable(item) for item in items]
    return "\n".join([f"Not done: {counts}", "", *items])
