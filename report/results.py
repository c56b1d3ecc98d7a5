"""All that is said of a parent folder's experiments, from one reading: tables, pictures, pages."""

from collections.abc import Sequence
from pathlib import Path

from report.html.experiment_page import write_experiment_page, write_experiment_pages
from report.html.runs_page import write_runs_page
from report.plots import draw
from report.rows import Row, read_rows
from report.summary import summarise, write_summary
from report.tree import find_folders


def write_results(parent: Path) -> list[Path]:
    """results.md, results.csv, pictures and report.html of all experiments below `parent`, written there."""
    folders = find_folders(parent)
    rows, problems = read_rows(folders, parent)
    written = write_summary(parent, summarise(rows, problems))
    drawn = [row for row in rows if row.history]
    return [*written, *write_pictures(drawn, problems, folders, parent)[0]] if drawn else written


def write_pictures(
    rows: Sequence[Row], problems: dict[str, str], folders: Sequence[Path], into: Path, sort: str | None = None
) -> tuple[list[Path], list[str]]:
    """(pictures and pages of `rows` in `into`, what was left out and why); the folders get pages of their own."""
    written, remarks = draw(rows, into, sort)
    if into in folders:  # its report is its own
        written.append(write_experiment_page(into))
    else:
        verdict = summarise(rows, problems, sort).verdict
        written.append(write_runs_page(into, rows, problems, verdict, sort))
    write_experiment_pages([folder for folder in folders if folder != into])
    return written, remarks
