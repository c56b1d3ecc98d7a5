"""Experiment folders -> rows -> tables. Reads only; needs no torch. The figures are in engine/figures.py."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.figures import shorten
from engine.folder import Folder
from engine.lock import is_alive
from include import (
    ATTEMPTS,
    CHECKPOINTS,
    META,
    METRICS_BEST,
    METRICS_TEST,
    PARAMS,
    RECORD,
    RESOLVED,
    STATUS,
    TENSORBOARD,
    TEST_LOOKS,
    WEIGHTS,
)
from utils import UserError, nearest

Cells = dict[str, Any]  # column -> value
OF_THE_KIT = {RECORD, ATTEMPTS, CHECKPOINTS, TENSORBOARD, WEIGHTS}
NOT_COMPARED = {"data_dir", "hyper_search", "search"}
TIMES = {"seconds"}
REPLICATES = ("seed", "fold")  # runs that differ in these alone measure the same thing


@dataclass(frozen=True)
class Row:
    """What one experiment folder says."""

    name: str
    params: dict[str, Any]  # what ran, by dotted name
    best: dict[str, Any]  # epoch, loss and metrics of the best weights on the validation split
    test: dict[str, Any]  # the same on the test split, {} when nobody looked
    num_looks: int
    history: list[dict[str, Any]]
    status: str
    minimized: frozenset[str]  # metrics of which less is better

    @property
    def best_metric(self) -> str:
        return str(self.params.get("best_metric", "accuracy")).rpartition(":")[2]

    @property
    def seconds(self) -> float:
        return sum(row.get("seconds") or 0 for row in self.history)


# --- folders -> rows ------------------------------------------------------------------------------------


def natural(text: str) -> list[Any]:
    """A sorting key: "run_2" before "run_10"."""
    return [(0, float(part), "") if part[:1].isdigit() else (1, 0.0, part) for part in re.split(r"(\d+)", text) if part]


def find_folders(parent: Path) -> list[Path]:
    """The experiment folders in the tree under `parent`, without those that only hold others (a search)."""
    if not parent.is_dir():
        raise UserError(f"{parent}: no such folder")
    found = []
    for current, names, files in os.walk(parent):
        path = Path(current)
        is_experiment = PARAMS in files or (path / STATUS).is_file() or (path / RESOLVED).is_file()
        if is_experiment:
            found.append(path)
        skip = OF_THE_KIT if is_experiment else set()
        names[:] = [name for name in names if name not in skip and not name.startswith((".", "__"))]
    holders = {above for path in found for above in path.parents}
    found = [path for path in found if path not in holders or (path / RESOLVED).exists()]
    return sorted(found, key=lambda path: natural(str(path)))


def read_rows(folders: Iterable[Path], parent: Path | None = None) -> tuple[list[Row], dict[str, str]]:
    """(rows of the folders that have results, name -> what is the matter with one not done). Never fatal."""
    rows: list[Row] = []
    problems: dict[str, str] = {}
    for path in folders:
        name = str(path.relative_to(parent)) if parent and path != parent else str(path)
        try:
            remark = state_remark(path)
            if (path / METRICS_BEST).exists():
                rows.append(read_row(path, name))
            elif not remark:
                remark = f"malformed: done, but there is no {METRICS_BEST}"
        except UserError as error:
            remark = f"malformed: {error}"
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            remark = f"malformed: {type(error).__name__}: {error}"
        if remark:
            problems[name] = remark
    return rows, problems


def read_row(path: Path, name: str) -> Row:
    """The row of one folder. UserError, or whatever a file of another shape causes."""
    folder = Folder(path)
    resolved, meta = folder.record(RESOLVED), folder.record(META)
    if not resolved:
        raise UserError(f"{path / RESOLVED}: no such file")
    params = flatten({key: value for key, value in resolved.items() if key != "pinned" and key not in NOT_COMPARED})
    if meta.get("data_dir"):
        params["data"] = Path(meta["data_dir"]).name
    looks = path / TEST_LOOKS
    return Row(
        name=name,
        params=params,
        best=numbers(folder.read(METRICS_BEST), path / METRICS_BEST),
        test=numbers(folder.read(METRICS_TEST, {}), path / METRICS_TEST),
        num_looks=count_looks(looks),
        history=[dict(row) for row in folder.history()],
        status=status_of(path),
        minimized=frozenset(["loss", *(meta.get("minimize") or [])]),
    )


def count_looks(path: Path) -> int:
    """Lines of record/test_looks.jsonl."""
    if not path.exists():
        return 0
    return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())


def numbers(values: Any, path: Path) -> dict[str, Any]:
    """`values` when it is a flat table name -> number or null. UserError otherwise."""
    good = isinstance(values, dict) and all(
        value is None or isinstance(value, int | float) for value in values.values()
    )
    if not good:
        raise UserError(f"{path}: a flat table of numbers is expected")
    return values


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def status_of(path: Path) -> str:
    """created, running, killed (it says running, but its process is gone), interrupted, failed or done. UserError."""
    status = Folder(path).status()
    state = str(status["state"])
    if state == "unknown":
        raise UserError(status["message"])
    if state != "running" or status.get("host") != socket.gethostname():
        return state
    return state if is_alive(int(status["pid"])) else "killed"


def state_remark(path: Path) -> str:
    """What keeps a folder from being done, "" when it is."""
    state, status = status_of(path), Folder(path).status()
    where = f"epoch {status.get('epoch', 0)}, step {status.get('step', 0)}"
    message = " ".join(str(status.get("message", "")).split())
    match state:
        case "done":
            return ""
        case "created":
            return "not trained yet"
        case "running" | "killed":
            return f"{state} at {where}"
        case _:
            return f"{state} at {where}" + (f": {message}" if message else "")


# --- rows -> table --------------------------------------------------------------------------------------


def differing(rows: Sequence[Row]) -> list[str]:
    """The parameters that are not the same in all rows."""
    keys = dict.fromkeys(key for row in rows for key in row.params)
    return [key for key in keys if len({json.dumps(row.params.get(key), sort_keys=True) for row in rows}) > 1]


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows whose parameters differ in seed or fold alone, together, in the order of the first of each."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        rest = {key: value for key, value in row.params.items() if key not in REPLICATES}
        groups.setdefault(json.dumps(rest, sort_keys=True), []).append(row)
    return list(groups.values())


def label(row: Row, keys: Sequence[str]) -> str:
    """What tells a run from the others, for a legend; its folder's name when that is too much to say."""
    text = ", ".join(f"{key} {show(row.params.get(key))}" for key in keys)
    return text if text and len(text) <= 90 else row.name


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


def show(value: Any) -> str:
    """A parameter as people write it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


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
