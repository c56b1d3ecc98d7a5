"""Summarise the runs of a search or of any folders: tables, a verdict over seeds and folds, unfinished runs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from folder.history import split_column, validation_column
from report.formats import list_problems, replace_surrogates, to_csv, to_latex, to_markdown
from report.ownership import RESULTS_CSV, RESULTS_MD, may_write
from report.rows import Problems, Row, read_rows
from report.select import choose_columns, split_names
from report.settings import (
    REPLICATE_KEYS,
    describe_repeats,
    describe_validation,
    differing_keys,
    format_value,
    group_replicates,
    label_run,
    setting_keys,
)
from report.statistics import LEVEL, Group, Verdict, confidence_interval, judge, resolution
from report.tables import (
    Table,
    is_lower_better,
    make_group_lines,
    make_table,
    metric_names,
    name_group,
    sort_column,
    sort_lines,
)
from utils import write_atomic

MAX_LINES, MAX_PARAMETERS = 100, 16  # of a table for people; CSV and JSON hold everything
MAX_NAMED = 3  # names listed before "and N more"


@dataclass
class Summary:
    """The table of the runs, that of the settings when seeds or folds make groups, and what can be claimed."""

    runs: Table
    problems: Problems
    groups: Table = field(default_factory=Table)
    verdict: str = ""
    notes: list[str] = field(default_factory=list)  # what to know of the means: repeated folds, repeated runs
    remark: str = ""  # how the runs were made comparable


# --- from rows to a verdict -----------------------------------------------------------------------------


def summarise(
    rows: Sequence[Row], problems: Problems, sort: str | None = None, include_unfinished: bool = False
) -> Summary:
    """Tables and verdict. Means and tests are over the runs that are done; `include_unfinished`: over all runs."""
    # One line per run.
    keys = differing_keys(rows)
    table = make_table(rows, sort, keys)
    summary = Summary(table, problems)
    metric = judged_metric(rows, table.columns, sort) if len(rows) > 1 else None
    if metric is None:
        return summary

    # The runs of each setting that count, and the verdict over them.
    groups = group_replicates(rows, keys)
    counted = [_counted_runs(group, metric, include_unfinished) for group in groups]
    values = [{key: float(row.best[metric] or 0.0) for key, row in runs.items()} for runs in counted]
    present = [i for i, group in enumerate(values) if group]
    sign = -1 if is_lower_better(rows, metric) else 1
    # Folds validate on different images, so they are always compared in pairs.
    is_paired = True if "fold" in keys else None
    verdict = judge([_times(sign, values[i]) for i in present], is_paired) if present else None

    # One line per setting.
    keys = setting_keys(keys)
    if len(groups) < len(rows):
        lines = make_group_lines(groups, [list(runs.values()) for runs in counted], metric, keys)
        for i, p in zip(present, verdict.p_holm if verdict else (), strict=False):
            lines[i]["p"] = p
        columns = list(lines[0])
        summary.groups = Table(columns, sort_lines(lines, columns, rows, _sort_if_known(sort, columns)))
        for group in groups:
            runs = [row for row in group if counts_in_mean(row, metric, include_unfinished)]
            summary.notes += describe_repeats(runs, _name_setting(group, keys))

    summary.notes += describe_validation(rows)

    # One sentence, where all runs are on one dataset.
    datasets = sorted({str(row.params["data"]) for row in rows if row.params.get("data")})
    if len(datasets) > 1:
        summary.notes.append(
            f"No verdict over different datasets ({', '.join(datasets)}): --where data=NAME chooses one"
        )
    elif verdict and len(present) > 1:
        names = [_name_setting(groups[i], keys) for i in present]
        summary.verdict = verdict_sentence(verdict, names, [values[i] for i in present], metric)
    return summary


def judged_metric(rows: Sequence[Row], columns: Sequence[str], sort: str | None) -> str | None:
    """The metric that `sort` names, else the most common best_metric; None when no run has it."""
    split, metric = split_column(sort_column(columns, rows, sort))
    known = metric_names(row.best for row in rows)
    if split and metric in known:
        return metric
    default = split_column(sort_column(columns, rows, None))[1]
    return default if default in known else None


def _sort_if_known(sort: str | None, columns: Sequence[str]) -> str | None:
    """`sort` unless the groups have no such column, as for the seed."""
    return None if sort and sort not in columns and validation_column(sort) not in columns else sort


def _name_setting(group: Sequence[Row], keys: Sequence[str]) -> str:
    """The parameters of a setting in words, or the common part of its folders' names."""
    text = label_run(group[0], keys)
    return name_group(group) if text == group[0].name else text


def _counted_runs(group: Sequence[Row], metric: str, include_unfinished: bool) -> dict[str, Row]:
    """Seed and fold -> the run that counts. Duplicate runs count once; the later name is kept."""
    runs = [row for row in group if counts_in_mean(row, metric, include_unfinished)]
    return {" ".join(format_value(row.params.get(key)) for key in REPLICATE_KEYS): row for row in runs}


def counts_in_mean(row: Row, metric: str, include_unfinished: bool) -> bool:
    return (include_unfinished or row.is_done) and row.best.get(metric) is not None


def _times(sign: int, group: Group) -> Group:
    return {key: sign * value for key, value in group.items()}


def verdict_sentence(verdict: Verdict, names: Sequence[str], groups: Sequence[Group], metric: str) -> str:
    """The verdict in one line."""
    values = list(groups[verdict.best].values())
    mean, half_width = confidence_interval(values, resolution([v for group in groups for v in group.values()]))
    best = f"{names[verdict.best]}, {'mean ' if len(values) > 1 else ''}{metric} {mean:.4f}"
    if half_width is not None:
        best += f" ± {half_width:.4f}, n = {len(values)}"
    if all(len(group) == 1 for group in groups):
        equal = [i for i, group in enumerate(groups) if list(group.values()) == values and i != verdict.best]
        if len(equal) == len(groups) - 1:
            return f"No best: the {metric} of all {len(groups)} is {mean:.4f}; one run each, so no claim."
        aside = f"; equal to it: {join_names([names[i] for i in equal])}" if equal else ""
        return f"Best: {best}{aside}; one run each, so no claim."
    unjudged = join_names([names[i] for i in verdict.unjudged])
    aside = f" Not judged, one run each: {unjudged}." if unjudged else ""
    if verdict.p is None:
        if len(values) == 1:
            return f"No winner. Best: {best}; one run, so no claim."
        return f"No winner. Best: {best}; the others have one run each, so no claim.{aside}"
    how = f"p = {format_p(verdict.p)}, {'paired by seed or fold' if verdict.is_paired else 'unpaired'}"
    if verdict.is_winner:
        return f"Best: {best}; better than every other at the {LEVEL:.0%} level ({how}).{aside}"
    contenders = join_names([names[i] for i in verdict.contenders])
    return f"No winner: within noise ({how}). Best mean: {best}. Could equally be best: {contenders}.{aside}"


def format_p(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "1e-04 or less"


def join_names(names: Sequence[str]) -> str:
    """The first few names, and the number of the others."""
    shown = "; ".join(names[:MAX_NAMED])
    return f"{shown}; and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else shown


# --- as text --------------------------------------------------------------------------------------------


def format_summary(summary: Summary, top: int = MAX_LINES, columns: str | None = None, style: str = "md") -> str:
    """Settings, verdict and runs, then what is not done, as Markdown or LaTeX. At most `top` lines per table; 0: all.

    columns: names separated by commas; only the table that has them all is shown. LaTeX shows one table, too.
    """
    formatter = to_latex if style == "latex" else to_markdown
    names = split_names(columns)
    shows_groups = bool(summary.groups.lines) and _has_columns(summary.groups, names)
    shows_runs = bool(summary.runs.lines) and not (shows_groups and (columns or style == "latex"))
    parts = []
    if shows_groups:
        parts += [*_format_table(summary.groups, top, columns, formatter), summary.verdict, "\n".join(summary.notes)]
    if shows_runs:
        parts += ["Each run:"] if shows_groups else []
        parts += _format_table(summary.runs, top, columns, formatter)
    parts += [] if shows_groups else [summary.verdict, "\n".join(summary.notes)]
    parts += [summary.remark, list_problems(summary.problems)]
    if style == "latex":
        parts = [part if part.startswith("\\begin") else _as_comment(part) for part in parts]
    return replace_surrogates("\n\n".join(part for part in parts if part) + "\n")


def _as_comment(text: str) -> str:
    return "\n".join(f"% {line}".rstrip() for line in text.splitlines())


def _has_columns(table: Table, names: Sequence[str]) -> bool:
    return all(name in table.columns or validation_column(name) in table.columns for name in names)


def _format_table(table: Table, top: int, columns: str | None, formatter: Callable[[Table], str]) -> list[str]:
    """The table cut to a readable size, and a line that says what was left out."""
    shown = choose_columns(table.columns, columns) if columns else readable_columns(table)
    lines = table.lines[:top] if top else table.lines
    left_out = []
    if len(lines) < len(table.lines):
        left_out.append(f"{len(table.lines) - len(lines):,} more lines")
    if not columns and len(shown) < len(table.columns):
        left_out.append(f"{len(table.columns) - len(shown)} more columns")
    hint = f"... {' and '.join(left_out)}: see --top, --columns, or {RESULTS_CSV}" if left_out else ""
    return [formatter(Table(shown, lines)), hint]


def readable_columns(table: Table) -> list[str]:
    """All columns but parameters beyond MAX_PARAMETERS: those with the most different values stay."""
    first_result = table.columns.index("n" if "n" in table.columns else "best_epoch")
    params = table.columns[1:first_result]
    if len(params) > MAX_PARAMETERS:
        num_values = {name: len({format_value(line.get(name)) for line in table.lines}) for name in params}
        kept = sorted(params, key=lambda name: -num_values[name])[:MAX_PARAMETERS]
        params = [name for name in params if name in kept]
    return [table.columns[0], *params, *table.columns[first_result:]]


def summary_object(summary: Summary, top: int | None = None) -> dict[str, object]:
    """For --json: every number, of the first `top` lines of each table."""
    values: dict[str, object] = {"rows": summary.runs.lines[: top or None], "not_done": summary.problems}
    if summary.groups.lines:
        values["groups"] = summary.groups.lines[: top or None]
    values["verdict"] = summary.verdict
    if summary.notes:
        values["notes"] = summary.notes
    if summary.remark:
        values["remark"] = summary.remark
    return values


# --- files ----------------------------------------------------------------------------------------------


def read_summary(folders: Sequence[Path], parent: Path | None, sort: str | None = None) -> Summary:
    """The summary of `folders`, read without their histories."""
    gc_was_on = gc.isenabled()
    gc.disable()  # nothing here becomes garbage, and collecting took a third of the time
    try:
        rows, problems = read_rows(folders, parent, keep_history=False)
        return summarise(rows, problems, sort)
    finally:
        if gc_was_on:
            gc.enable()


def write_summary(parent: Path, summary: Summary) -> list[Path]:
    """Write results.md and results.csv into `parent` -> their paths. Those of another hand are left alone."""
    texts = {RESULTS_MD: format_summary(summary), RESULTS_CSV: replace_surrogates(to_csv(summary.runs))}
    own = [name for name in texts if may_write(parent / name)]
    for name in own:
        write_atomic(parent / name, texts[name])
    return [parent / name for name in own]
