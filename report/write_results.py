"""Write tables, figures and pages of the experiments below a parent folder, reading each folder once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from include import RESOLVED, TRAIN_LOG
from report.html.experiment_page import write_experiment_page, write_experiment_pages
from report.html.runs_page import write_runs_page
from report.importance import importance
from report.plots.curves import CURVES, save_curves
from report.plots.parameters import IMPORTANCE, PARAMETERS, save_importance, save_parameters
from report.plots.ranking import RankedRuns, rank_runs
from report.rows import Problems, Row, read_rows
from report.summary import summarise, write_summary
from report.tree import find_folders


def write_results(parent: Path) -> list[Path]:
    """Write results.md, results.csv, figures and report.html of all experiments below `parent` into it -> the files."""
    folders = find_folders(parent)
    rows, problems = read_rows(folders, parent)
    written = write_summary(parent, summarise(rows, problems))
    if rows:
        written += write_figures_and_pages(rows, problems, folders, parent)[0]
    return written


def write_figures_and_pages(
    rows: Sequence[Row], problems: Problems, folders: Sequence[Path], target: Path, sort: str | None = None
) -> tuple[list[Path], list[str]]:
    """(figures and page of `rows` written into `target`, which figures were left out and why).

    The page of each of `folders` is written, too, where it is out of date.
    """
    ranked = rank_runs(rows, sort)
    written, remarks = draw_figures(ranked, target)
    if target in folders and (target / RESOLVED).exists():  # a single experiment has its own page
        written.append(write_experiment_page(target))
    else:
        summary = summarise(rows, problems, sort)
        verdict = " ".join(filter(None, [summary.verdict, *summary.notes]))
        written.append(write_runs_page(target, ranked, problems, verdict, sort))
    write_experiment_pages([folder for folder in folders if folder != target])
    return written, remarks


def draw_figures(ranked: RankedRuns, folder: Path) -> tuple[list[Path], list[str]]:
    """(the figures written into `folder`, why others were not)."""
    if not ranked.rows:
        return [], []
    remarks, written = [], []
    if any(row.history for row in ranked.rows):
        save_curves(folder / CURVES, ranked)
        written.append(folder / CURVES)
    else:
        remarks.append(f"no {CURVES}: no folder has a history, or a {TRAIN_LOG} with its epochs")
    shares, basis = importance(ranked.groups, ranked.keys, ranked.value)
    if ranked.keys:
        keys = sorted(ranked.keys, key=lambda key: -shares.get(key, 0))
        save_parameters(folder / PARAMETERS, ranked, keys)
        written.append(folder / PARAMETERS)
    if shares:
        save_importance(folder / IMPORTANCE, ranked, shares, basis)
        written.append(folder / IMPORTANCE)
    else:
        remarks.append(f"no {IMPORTANCE}: {basis}")
        (folder / IMPORTANCE).unlink(missing_ok=True)  # an earlier one was drawn from other runs
    return written, remarks
