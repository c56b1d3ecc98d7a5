"""What the runs of a search, or of any folders, come to: tables, a verdict over seeds and folds, what is not done."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from folder.history import split_column, validation_column
from report.rows import REPLICATES, Row, differing, grouped, label, read_rows, show
from report.statistics import LEVEL, Verdict, interval, judge, resolution
from report.tables import (
    MAX_COLUMNS,
    MAX_ROWS,
    Cells,
    choose_columns,
    describe_problems,
    group_name,
    is_less_better,
    make_group_lines,
    make_table,
    metric_columns,
    printable,
    sort_cells,
    sort_column,
    to_csv,
    to_latex,
    to_markdown,
)
from utils import write_atomic

RESULTS_MD, RESULTS_CSV = "results.md", "results.csv"
FEW = 3  # so many are named that could as well be best


@dataclass
class Summary:
    """The table of the runs, that of the groups when seeds or folds make groups, and what may be said of them."""

    columns: list[str]
    cells: list[Cells]
    problems: dict[str, str]
    group_columns: list[str] = field(default_factory=list)
    groups: list[Cells] = field(default_factory=list)
    verdict: str = ""
    remark: str = ""  # how the runs were made comparable


def summarise(
    rows: Sequence[Row], problems: dict[str, str], sort: str | None = None, all_count: bool = False
) -> Summary:
    """Tables of `rows`. Means and tests are over the runs that are done; `all_count`: over all of them."""
    keys = differing(rows)
    columns, cells = make_table(rows, sort, keys)
    summary = Summary(columns, cells, problems)
    groups = grouped(rows, keys)
    if len(groups) < 2 and len(rows) < 2:
        return summary
    metric = judged_metric(rows, columns, sort)
    if metric is None:
        return summary
    found = [_replicates(group, metric, all_count) for group in groups]
    has_folds = "fold" in keys  # folds share their images, so they are always compared in pairs
    keys = [key for key in keys if key not in REPLICATES]
    names = [_describe(group, keys) for group in groups]
    values = [{key: float(row.best[metric]) for key, row in runs.items()} for runs in found]
    present = [i for i, group in enumerate(values) if group]
    sign = -1 if is_less_better(rows, metric) else 1
    verdict = _judge([values[i] for i in present], sign, has_folds) if present else None
    if len(groups) < len(rows):
        lines = make_group_lines(groups, [list(runs.values()) for runs in found], metric, keys)
        for i, p in zip(present, verdict.p_holm if verdict else (), strict=False):
            lines[i]["p"] = p
        summary.group_columns = list(lines[0])
        summary.groups = sort_cells(lines, summary.group_columns, rows, _group_sort(summary.group_columns, sort))
    if verdict and len(present) > 1:
        summary.verdict = sentence(verdict, [names[i] for i in present], [values[i] for i in present], metric)
    return summary


def judged_metric(rows: Sequence[Row], columns: Sequence[str], sort: str | None) -> str | None:
    """The metric that --sort names, or the one that most runs were to be best in; None when nobody has it."""
    split, metric = split_column(sort_column(columns, rows, sort))
    known = metric_columns(row.best for row in rows)
    if split and metric in known:
        return metric
    default = split_column(sort_column(columns, rows, None))[1]
    return default if default in known else None


def _group_sort(columns: Sequence[str], sort: str | None) -> str | None:
    """A table of groups has no column for a seed, or for what varies within a group."""
    return None if sort and sort not in columns and validation_column(sort) not in columns else sort


def _describe(group: Sequence[Row], keys: Sequence[str]) -> str:
    """A configuration in words: the parameters that tell it from the others."""
    text = label(group[0], keys)
    return group_name(group) if text == group[0].name else text


def _replicates(group: Sequence[Row], metric: str, all_count: bool) -> dict[str, Row]:
    """Seed and fold -> the run that counts. A run done twice is no second sample: the later name stands for both."""
    runs = [row for row in group if (all_count or row.status == "done") and row.best.get(metric) is not None]
    return {" ".join(show(row.params.get(key)) for key in REPLICATES): row for row in runs}


def _judge(values: Sequence[dict[str, float]], sign: int, has_folds: bool) -> Verdict:
    return judge([{key: sign * value for key, value in group.items()} for group in values], has_folds or None)


def sentence(verdict: Verdict, names: Sequence[str], values: Sequence[dict[str, float]], metric: str) -> str:
    """What may be said, in one line."""
    group, num = values[verdict.best], len(values[verdict.best])
    middle, width = interval(list(group.values()), resolution([v for one in values for v in one.values()]))
    best = f"{names[verdict.best]}, " + (f"mean {metric} {middle:.4f}" if num > 1 else f"{metric} {middle:.4f}")
    best += f" ± {width:.4f}, n = {num}" if width is not None else ""
    if all(len(group) == 1 for group in values):
        return f"Best: {best}; one run each: no claim."
    unjudged = listed([names[i] for i in verdict.unjudged])
    aside = f" Not judged, one run each: {unjudged}." if unjudged else ""
    if verdict.p is None:
        reason = "one run, so no claim" if num == 1 else "the others have one run each, so no claim"
        return f"No winner. Best: {best}; {reason}.{aside if num > 1 else ''}"
    how = f"p = {show_p(verdict.p)}, {'paired by seed or fold' if verdict.is_paired else 'unpaired'}"
    if verdict.is_winner:
        return f"Best: {best}; better than every other at {LEVEL:.0%} ({how}).{aside}"
    near = listed([names[i] for i in verdict.contenders])
    return f"No winner: within noise ({how}). Best mean: {best}. Could as well be best: {near}.{aside}"


def show_p(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "1e-04 or less"


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = "; ".join(names[:FEW])
    return f"{shown}; and {len(names) - FEW} more" if len(names) > FEW else shown


# --- as text --------------------------------------------------------------------------------------------


def report_text(summary: Summary, top: int = MAX_ROWS, wanted: str | None = None, style: str = "md") -> str:
    """Groups, verdict and runs, then what is not done, as Markdown or LaTeX. At most `top` lines a table; 0: all.

    `wanted`: columns with commas between them; the one table that has them all is shown. LaTeX is one table too.
    """
    to_text = to_latex if style == "latex" else to_markdown
    of_groups = bool(summary.groups) and not _is_of_runs(summary, wanted)
    parts = []
    if of_groups:
        parts += [*_table(summary.group_columns, summary.groups, top, wanted, to_text), summary.verdict]
    if summary.cells and not (of_groups and (wanted or style == "latex")):
        parts += ["Each run:"] if of_groups else []
        parts += _table(summary.columns, summary.cells, top, wanted, to_text)
    parts += [] if of_groups else [summary.verdict]
    parts += [summary.remark, describe_problems(summary.problems)]
    if style == "latex":
        parts = [part if part.startswith("\\begin") else _as_comment(part) for part in parts]
    return printable("\n\n".join(part for part in parts if part) + "\n")


def _as_comment(text: str) -> str:
    return "\n".join(f"% {line}".rstrip() for line in text.splitlines())


def _is_of_runs(summary: Summary, wanted: str | None) -> bool:
    """Whether a column that was asked for is one of single runs alone, as the seed is."""
    names = [name.strip() for name in (wanted or "").split(",") if name.strip()]
    return not all({name, validation_column(name)} & set(summary.group_columns) for name in names)


def _table(columns: list[str], cells: list[Cells], top: int, wanted: str | None, to_text: Any) -> list[str]:
    """The table cut to what can be read, and a line that says what was left out."""
    shown = choose_columns(columns, wanted) if wanted else readable(columns, cells)
    lines = cells[:top] if top else cells
    more = [f"{len(cells) - len(lines):,} more lines"] if len(lines) < len(cells) else []
    more += [f"{len(columns) - len(shown)} more columns"] if not wanted and len(shown) < len(columns) else []
    rest = f"... {' and '.join(more)}: see --top, --columns, or {RESULTS_CSV}" if more else ""
    return [to_text(shown, lines), rest]


def readable(columns: Sequence[str], cells: Sequence[Cells]) -> list[str]:
    """At most MAX_COLUMNS parameters' columns: those with the most different values; all others stay."""
    first = columns.index("n") if "n" in columns else columns.index("best_epoch")
    params = list(columns[1:first])
    if len(params) > MAX_COLUMNS:
        kinds = {name: len({show(line.get(name)) for line in cells}) for name in params}
        kept = set(sorted(params, key=lambda name: -kinds[name])[:MAX_COLUMNS])
        params = [name for name in params if name in kept]
    return [columns[0], *params, *columns[first:]]


def to_object(summary: Summary, top: int | None = None) -> dict[str, Any]:
    """For --json: every number, of the first `top` lines."""
    found: dict[str, Any] = {"rows": summary.cells[: top or None], "not_done": summary.problems}
    found |= {"groups": summary.groups[: top or None]} if summary.groups else {}
    return found | {"verdict": summary.verdict} | ({"remark": summary.remark} if summary.remark else {})


# --- files ----------------------------------------------------------------------------------------------


def read_summary(folders: Sequence[Path], parent: Path | None, sort: str | None = None) -> Summary:
    gc_was_on = gc.isenabled()
    gc.disable()  # many objects that all stay: looking for cycles among them took a third of the time
    try:
        return summarise(*read_rows(folders, parent, keep_history=False), sort)
    finally:
        if gc_was_on:
            gc.enable()


def write_summary(parent: Path, summary: Summary) -> list[Path]:
    files = {RESULTS_MD: report_text(summary), RESULTS_CSV: printable(to_csv(summary.columns, summary.cells))}
    for name, text in files.items():
        write_atomic(parent / name, text)
    return [parent / name for name in files]
