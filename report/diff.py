"""Experiments beside each other: parameters, code and metrics that differ, and whether that is within noise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from folder.history import join_column, split_column, validation_column
from folder.provenance import code_differences
from include import CODE
from report.rows import Row, differing, grouped, read_rows, show
from report.statistics import LEVEL, judge
from report.tables import compared_metric, is_less_better, metric_columns, printable, to_markdown
from report.tree import find_folders
from utils import UserError

MAX_FILES = 20


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """{"folders", "params", "metrics", "code", "noise"}. UserError for fewer than two, or one without results."""
    if len(folders) < 2:
        raise UserError("--diff: two or more experiment folders are needed")
    rows, problems = read_rows(folders)
    named = {row.name: row for row in rows}
    for folder in folders:
        if str(folder) not in named:
            raise UserError(f"--diff: {folder} has no results: {problems.get(str(folder), 'given twice')}")
    rows = [named[str(folder)] for folder in folders]
    if len(named) < len(folders):
        raise UserError("--diff: a folder is given twice")
    return {
        "folders": [row.name for row in rows],
        "params": {key: [row.params.get(key) for row in rows] for key in differing(rows)},
        "metrics": _metrics(rows),
        "code": {str(folder): _code(folders[0], folder) for folder in folders[1:]},
        "noise": _noise(folders, rows),
    }


def _metrics(rows: Sequence[Row]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {"best_epoch": [row.best.get("epoch") for row in rows]}
    found |= {"epochs": [row.num_epochs for row in rows]}
    for name in metric_columns(row.best for row in rows):
        found[validation_column(name)] = [row.best.get(name) for row in rows]
    for name in metric_columns(row.test for row in rows):
        found[join_column("test", name)] = [row.test.get(name) for row in rows]
    found["num_parameters"] = [row.num_parameters for row in rows]
    return found | {"seconds": [round(row.seconds, 1) for row in rows], "status": [row.status for row in rows]}


def _frozen(folder: Path) -> Path | None:
    """The code that ran: the folder's own copy, or that of the search it is a child of."""
    return next((place / CODE for place in (folder, folder.absolute().parent) if (place / CODE).is_dir()), None)


def _code(first: Path, other: Path) -> list[str] | str:
    one, two = _frozen(first), _frozen(other)
    if not (one and two):
        return f"{first if not one else other} holds no copy of its code"
    return code_differences(one, two)


def _noise(folders: Sequence[Path], rows: Sequence[Row]) -> str:
    """Whether the runs, each with those beside it that differ in seed or fold alone, differ by more than noise."""
    metric = compared_metric(rows)
    sign = -1 if is_less_better(rows, metric) else 1
    groups = [_siblings(folder, row, metric) for folder, row in zip(folders, rows, strict=True)]
    if any(len(group) < 2 for group in groups):
        return 'One run each: no claim about noise. With seeds beside each (a search with "seeds": 5) there is one.'
    if len({tuple(sorted(group)) for group in groups}) < len(groups):
        return "Seeds of the same configuration: what differs between them is noise."
    by_seed = [{key: sign * value for key, value in group.values()} for group in groups]
    verdict = judge(by_seed)
    name = rows[verdict.best].name
    num = " and ".join(str(len(group)) for group in by_seed)
    if verdict.p is None or not verdict.is_winner:
        return f"Within noise: {metric} over {num} seeds or folds says no winner (p = {verdict.p or 1:.2g})."
    return f"Beyond noise: {name} is better in {metric} at {LEVEL:.0%} over {num} seeds or folds (p = {verdict.p:.2g})."


def _siblings(folder: Path, row: Row, metric: str) -> dict[str, tuple[str, float]]:
    """Folder -> (its seed and fold, its value), of the runs beside `folder` that differ in seed or fold alone."""
    own = str(folder.absolute())
    beside, _ = read_rows(find_folders(folder.absolute().parent), keep_history=False)
    group = next((group for group in grouped(beside) if any(other.name == own for other in group)), [])
    runs = [other for other in group if other.status == "done" and other.best.get(metric) is not None]
    return {run.name: (show([run.params.get("seed"), run.params.get("fold")]), run.best[metric]) for run in runs}


def compare_text(found: dict[str, Any]) -> str:
    """What differs, as Markdown: a column for each folder."""
    folders = [Path(name).absolute() for name in found["folders"]]
    common = os.path.commonpath([folder.parent for folder in folders])
    short = dict(zip(found["folders"], (os.path.relpath(folder, common) for folder in folders), strict=True))
    columns = ["", *short.values()]
    parts = []
    for title in ("params", "metrics"):
        lines = [dict(zip(columns, [key, *values], strict=True)) for key, values in found[title].items()]
        lines = [line for line in lines if any(value is not None for value in list(line.values())[1:])]
        parts.append(to_markdown(columns, [_shown(line) for line in lines]) if lines else f"No {title} differ.")
    for folder, names in found["code"].items():
        if isinstance(names, str):
            parts.append(f"Code: {names}.")
        elif not names:
            parts.append(f"Code: the same in {short[found['folders'][0]]} and {short[folder]}.")
        else:
            more = f" and {len(names) - MAX_FILES} more" if len(names) > MAX_FILES else ""
            parts.append(f"Code that differs in {short[folder]}: {', '.join(names[:MAX_FILES])}{more}")
    return printable("\n\n".join([*parts, found["noise"]]) + "\n")


def _shown(line: dict[str, Any]) -> dict[str, Any]:
    """Metrics with four decimals; everything else as it is."""
    name = line[""]
    is_metric = bool(split_column(name)[0])
    return {key: f"{value:.4f}" if is_metric and isinstance(value, float) else value for key, value in line.items()}
