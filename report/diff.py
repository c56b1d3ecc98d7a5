"""Experiments side by side: parameters, code and metrics that differ, and whether the difference is within noise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from folder.console import name_some
from folder.history import join_column, split_column, validation_column
from folder.provenance import code_differences
from include import CODE
from report.formats import replace_surrogates, to_markdown
from report.rows import Row, read_rows
from report.settings import differing_keys, format_value, group_replicates
from report.statistics import LEVEL, judge
from report.tables import Line, Table, is_lower_better, metric_names, most_common_metric
from report.tree import find_folders
from utils import UserError

MAX_FILES = 20  # names of files that are listed

ValuesByName: TypeAlias = dict[str, list[object]]  # parameter or metric -> its value in each folder


@dataclass(frozen=True)
class ExperimentDiff:
    """What differs between experiment folders."""

    folders: list[str]
    params: ValuesByName
    metrics: ValuesByName
    code: dict[str, list[str] | str]  # folder -> files that differ from the first folder's, or why that is unknown
    noise: str  # one sentence

    def as_object(self) -> dict[str, object]:
        """For --json."""
        return asdict(self)


def diff_experiments(folders: Sequence[Path]) -> ExperimentDiff:
    """UserError for fewer than two folders, for one that is given twice, and for one without results."""
    if len(folders) < 2:
        raise UserError("--diff: two or more experiment folders are needed")
    rows, problems = read_rows(folders)
    by_name = {row.name: row for row in rows}
    for folder in folders:
        if str(folder) not in by_name:
            raise UserError(f"--diff: {folder} has no results: {problems.get(str(folder), 'given twice')}")
    rows = [by_name[str(folder)] for folder in folders]
    if len(by_name) < len(folders):
        raise UserError("--diff: a folder is given twice")
    return ExperimentDiff(
        folders=[row.name for row in rows],
        params={key: [row.params.get(key) for row in rows] for key in differing_keys(rows)},
        metrics=_collect_metrics(rows),
        code={str(folder): _diff_code(folders[0], folder) for folder in folders[1:]},
        noise=_noise_sentence(folders, rows),
    )


def _collect_metrics(rows: Sequence[Row]) -> ValuesByName:
    """The results of the runs; a value per run, even if all are equal."""
    values: ValuesByName = {"best_epoch": [row.best.get("epoch") for row in rows]}
    values["epochs"] = [row.num_epochs for row in rows]
    for name in metric_names(row.best for row in rows):
        values[validation_column(name)] = [row.best.get(name) for row in rows]
    for name in metric_names(row.test for row in rows):
        values[join_column("test", name)] = [row.test.get(name) for row in rows]
    values["num_parameters"] = [row.num_parameters for row in rows]
    values["seconds"] = [round(row.seconds, 1) for row in rows]
    values["status"] = [row.status for row in rows]
    return values


# --- code -----------------------------------------------------------------------------------------------


def _diff_code(first: Path, other: Path) -> list[str] | str:
    """The files that differ, or the reason why they cannot be compared."""
    first_code, other_code = _find_frozen_code(first), _find_frozen_code(other)
    if first_code is None or other_code is None:
        return f"{first if first_code is None else other} holds no copy of its code"
    return code_differences(first_code, other_code)


def _find_frozen_code(folder: Path) -> Path | None:
    """The code that ran: the folder's own copy, or that of the search that it belongs to."""
    places = (folder / CODE, folder.absolute().parent / CODE)
    return next((place for place in places if place.is_dir()), None)


# --- noise ----------------------------------------------------------------------------------------------


def _noise_sentence(folders: Sequence[Path], rows: Sequence[Row]) -> str:
    """Whether the runs, each with its replicates in the same parent folder, differ by more than noise."""
    metric = most_common_metric(rows)
    sign = -1 if is_lower_better(rows, metric) else 1
    groups = [_replicates_beside(folder, row, metric) for folder, row in zip(folders, rows, strict=True)]
    if any(len(group) < 2 for group in groups):
        return 'One run each, so no claim about noise: that needs seeds beside each (a search with "seeds": 5).'
    if len({tuple(sorted(group)) for group in groups}) < len(groups):
        return "Seeds of the same configuration: what differs between them is noise."
    values = [{seed: sign * value for seed, value in group.values()} for group in groups]
    verdict = judge(values)
    name = rows[verdict.best].name
    sizes = " and ".join(str(len(group)) for group in values)
    if verdict.p is None or not verdict.is_winner:
        p = 1.0 if verdict.p is None else verdict.p
        return f"Within noise: {metric} over {sizes} seeds or folds shows no winner (p = {p:.2g})."
    level = f"{LEVEL:.0%} level over {sizes} seeds or folds"
    return f"Beyond noise: {name} is better in {metric} at the {level} (p = {verdict.p:.2g})."


def _replicates_beside(folder: Path, row: Row, metric: str) -> dict[str, tuple[str, float]]:
    """Folder -> (its seed and fold, its value), of the finished runs of the same setting in the same parent folder."""
    own_name = str(folder.absolute())
    neighbours, _ = read_rows(find_folders(folder.absolute().parent), keep_history=False)
    groups = group_replicates(neighbours)
    group = next((group for group in groups if any(other.name == own_name for other in group)), [])
    replicates = {}
    for run in group:
        value = run.best.get(metric)
        if run.is_done and value is not None:
            seed = format_value([run.params.get("seed"), run.params.get("fold")])
            replicates[run.name] = (seed, value)
    return replicates


# --- as text --------------------------------------------------------------------------------------------


def format_diff(difference: ExperimentDiff) -> str:
    """Markdown with a column for each folder."""
    folders = [Path(name).absolute() for name in difference.folders]
    common = os.path.commonpath([folder.parent for folder in folders])
    short = dict(zip(difference.folders, (os.path.relpath(folder, common) for folder in folders), strict=True))
    names = list(short.values())
    parts = [_format_values("params", difference.params, names), _format_values("metrics", difference.metrics, names)]
    for folder, files in difference.code.items():
        if isinstance(files, str):
            parts.append(f"Code: {files}.")
        elif not files:
            parts.append(f"Code: the same in {short[difference.folders[0]]} and {short[folder]}.")
        else:
            parts.append(f"Code that differs in {short[folder]}: {name_some(files, MAX_FILES)}")
    return replace_surrogates("\n\n".join([*parts, difference.noise]) + "\n")


def _format_values(title: str, values: ValuesByName, folders: Sequence[str]) -> str:
    """One line for each name that has a value in any folder; metrics with four decimals."""
    lines: list[Line] = []
    for name, cells in values.items():
        is_metric = bool(split_column(name)[0])
        shown = [f"{cell:.4f}" if is_metric and isinstance(cell, float) else cell for cell in cells]
        if any(cell is not None for cell in cells):
            lines.append({"": name} | dict(zip(folders, shown, strict=True)))
    return to_markdown(Table(["", *folders], lines)) if lines else f"No {title} differ."
