"""report.html of the folder that holds several experiments: what is searched, curves, parameters, a table, pictures."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import params as params_module
from folder.folder import Folder
from folder.history import is_minimized, split_column, validation_column
from include import PARAMS
from report import plots
from report.figures import metric_names, series, shorten
from report.html.markup import (
    REPORT,
    badge,
    link,
    pictures,
    provide_plotly,
    report_above,
    rounded,
    text,
    write_document,
)
from report.importance import is_logarithmic
from report.rows import Row, show
from report.tables import make_table
from utils import UserError

MAX_RUNS, MAX_NUMBERS = 1000, 300_000
STATES = ("done", "running", "interrupted", "pruned", "failed", "killed", "created", "malformed")


def write_runs_page(
    folder: Path, rows: Sequence[Row], problems: dict[str, str], verdict: str = "", sort: str | None = None
) -> Path:
    """Write `folder`/report.html over `rows`, named relative to it, and the folders that are not done."""
    given, folder = folder, Path(os.path.abspath(folder))
    found = plots.compare(rows, sort)
    shown = found.rows[:MAX_RUNS]
    body = [f"<p>{link(above / REPORT, folder, f'← {above.name}')}</p>" if (above := report_above(folder)) else ""]
    body += [f"<h1>{text(folder.name)}</h1>", summary(folder, found, problems, verdict)]
    if len(shown) < len(found.rows):
        body.append(f'<p class="hint">Of {len(found.rows)} runs, the best {MAX_RUNS} are on this page.</p>')
    data: dict[str, Any] = {}
    if shown:
        columns, cells = make_table(shown, sort)
        by_name = {line["folder"]: line for line in cells}
        lines = [by_name[row.name] for row in shown]
        data = runs_data(found, shown, columns, lines)
        body += [curves_section(found, shown), axes_section(data), runs_table(folder, found, columns, lines)]
    results = [
        link(folder / name, folder) for name in ("results.md", "results.csv", PARAMS) if (folder / name).exists()
    ]
    images = [folder / name for name in (plots.CURVES, plots.PARAMETERS, plots.IMPORTANCE)]
    body += [not_done(folder, problems), pictures(images, folder)]
    body += [f"<h2>Files</h2><p>{' · '.join(results)}</p>" if results else ""]
    provide_plotly(folder)
    write_document(folder, folder.name, "\n".join(filter(None, body)), data, folder, above)
    return given / REPORT


def summary(folder: Path, found: plots.Comparison, problems: dict[str, str], verdict: str) -> str:
    """What is searched, how many are how far, which is best."""
    states = Counter(row.status for row in found.rows)
    names = {row.name for row in found.rows}
    states.update(state_of(folder / name, problems[name]) for name in problems.keys() - names)
    ranked = sorted(states, key=lambda state: STATES.index(state) if state in STATES else len(STATES))
    parts = [f"<p>{''.join(badge(state, str(states[state])) for state in ranked)}</p>"]
    if space := searched(folder):
        parts.insert(0, f"<p>{space}</p>")
    parts += [f"<p>{line}</p>" for line in best_lines(folder, found)]
    if verdict:
        parts.append(f'<p class="verdict">{text(verdict)}</p>')
    return "\n".join(parts)


def best_lines(folder: Path, found: plots.Comparison) -> list[str]:
    """The best run, and with replicates the best mean, in words."""
    values = [found.value(row) for row in found.rows]
    best = [row for row, value in zip(found.rows, values, strict=True) if math.isfinite(value)]
    if not best:
        return []
    run = (min if found.minimize else max)(best, key=found.value)
    where = f", epoch {run.best['epoch']}" if run.best.get("epoch") else ""
    name = text(found.metric.replace("_", " "))
    run_link = link(folder / run.name / REPORT, folder, shorten(run.name, 100))
    lines = [f"Best run: {run_link}, validation {name} {found.value(run):.4f}{where}."]
    group = found.groups[0]
    if len(group) > 1 and all(math.isfinite(found.value(row)) for row in group):
        mean = sum(map(found.value, group)) / len(group)
        lines.insert(0, f"Best mean: {text(found.label(group))}, validation {name} {mean:.4f}.")
    return lines


def state_of(path: Path, remark: str) -> str:
    """The state of a folder without results, of which `remark` says why it is not done."""
    word = remark.split(" ")[0].rstrip(":")
    return word if word in STATES else str(Folder(path).status()["state"])


def searched(folder: Path) -> str:
    """What the folder's params.json searches, "" when it searches nothing."""
    try:
        written = params_module.read(folder / PARAMS)
        space, how = dict(written.get("hyper_search") or {}), dict(written.get("search") or {})
    except (UserError, OSError, ValueError, TypeError):
        return ""
    parts = [f"<code>{text(key)}</code> {text(shorten(space_text(wanted), 120))}" for key, wanted in space.items()]
    extra = ", ".join(f"{key} {show(value)}" for key, value in how.items() if value not in (None, "none", 1))
    remark = f'. <span class="soft">{text(extra)}</span>' if extra else ""
    return f"Searched: {'; '.join(parts)}{remark}" if parts else ""


def space_text(wanted: Any) -> str:
    """What one parameter of hyper_search may be, as people write it."""
    if isinstance(wanted, list):
        return ", ".join(map(plots.brief, wanted))
    if isinstance(wanted, dict) and isinstance(wanted.get("choice"), list):
        return ", ".join(map(plots.brief, wanted["choice"]))
    if isinstance(wanted, dict) and {"min", "max"} <= wanted.keys():
        kinds = [word for key, word in (("log", "logarithmic"), ("int", "whole numbers")) if wanted.get(key)]
        return f"{show(wanted['min'])} to {show(wanted['max'])}" + (f" ({', '.join(kinds)})" if kinds else "")
    return show(wanted)


def runs_data(
    found: plots.Comparison, rows: Sequence[Row], columns: Sequence[str], lines: Sequence[dict]
) -> dict[str, Any]:
    """What the page's script needs to know."""
    rank_of = {row.name: rank for rank, group in enumerate(found.groups) for row in group}
    keys = {column for column in columns if column in {key for row in rows for key in row.params}}
    minimized = {name for row in rows for name in row.minimized}

    def describe(column: str) -> dict[str, Any]:
        split, metric = split_column(column)
        kind = "name" if column == "folder" else "parameter" if column in keys else "other"
        return {"name": column, "kind": kind, "ascending": not split or is_minimized(metric, minimized)}

    axes = [axis_data(column, place, lines) for place, column in enumerate(columns) if column in found.keys]
    value = validation_column(found.metric)
    axes += [axis_data(value, columns.index(value), lines)] if value in columns else []
    names = metric_names([row for run in rows[:50] for row in run.history], [found.metric])
    stride = max(1, math.ceil(sum(len(row.history) for row in rows) * 2 * len(names) / MAX_NUMBERS))
    runs = [
        {"name": row.name, "rank": rank_of[row.name], "cells": [cell(line.get(column)) for column in columns]}
        | curves_data(row, names, stride)
        for row, line in zip(rows, lines, strict=True)
    ]
    return {"runs": runs, "columns": [describe(column) for column in columns], "axes": axes if len(axes) > 1 else [],
            "metric": found.metric if found.metric in names else "loss", "minimize": found.minimize,
            "num_named": plots.NUM_NAMED, "labels": [shorten(found.label(g), 120) for g in found.groups]}  # fmt: skip


def cell(value: Any) -> Any:
    """A value for the script: numbers stay numbers."""
    return value if value is None or plots.is_number(value) else show(value)


def axis_data(column: str, place: int, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = [line.get(column) for line in lines]
    numbers = [float(value) for value in values if plots.is_number(value)]
    return {"name": column, "place": place, "log": len(numbers) == len(values) and is_logarithmic(numbers)}


def curves_data(row: Row, names: Sequence[str], stride: int) -> dict[str, Any]:
    """Every `stride`-th epoch, and the last."""
    history = [entry for number, entry in enumerate(row.history) if number % stride == 0 or entry is row.history[-1]]
    curves = {f"{split}_{name}": series(history, f"{split}_{name}") for split in ("train", "val") for name in names}
    curves = {key: list(map(rounded, values)) for key, values in curves.items() if any(map(math.isfinite, values))}
    return {"epochs": [int(epoch) for epoch in series(history, "epoch") if math.isfinite(epoch)], "series": curves}


def curves_section(found: plots.Comparison, rows: Sequence[Row]) -> str:
    metric = found.metric
    names = metric_names([row for run in rows[:50] for row in run.history], [metric])
    chosen = metric if metric in names else "loss"
    repeated = next((group for group in found.groups if len(group) > 1), [])
    mean = (
        f'<label><input type="checkbox" id="mean"> mean over {plots.replicates(repeated)}</label>' if repeated else ""
    )
    options = "".join(f"<option{' selected' if name == chosen else ''}>{text(name)}</option>" for name in names)
    return f"""<h2>Curves</h2>
<div class="bar"><select id="metric" aria-label="metric">{options}</select>
<label><input type="checkbox" id="train"> training too (dotted)</label>
{mean}
<label><input type="checkbox" id="log"> logarithmic</label>
<button id="none" type="button">no highlight</button></div>
<div class="plot" id="curves"></div>
<p class="hint">Drag to zoom, double-click to see all. A click on a line, or on a row, highlights the run.</p>"""


def axes_section(data: dict[str, Any]) -> str:
    if not data["axes"]:
        return ""
    return """<h2>Parameters</h2>
<div class="scroll"><div class="plot wide" id="axes"></div></div>
<p class="hint">Drag along an axis to keep a part of it, here and in curves and table; click on it to let go.</p>"""


def runs_table(folder: Path, found: plots.Comparison, columns: Sequence[str], lines: Sequence[dict[str, Any]]) -> str:
    """The table, best first, with a box for comparing and the colour of the curve."""
    right = [all(isinstance(line.get(column), int | float | None) for line in lines) for column in columns]
    marks = ' class="number"'
    head = "".join(
        f'<th data-place="{place}"{marks if right[place] else ""}><button type="button">{text(column)}</button></th>'
        for place, column in enumerate(columns)
    )

    def row(i: int, line: dict[str, Any]) -> str:
        target = folder / str(line["folder"])
        name = link(target / REPORT, folder, shorten(line["folder"], 120))
        box = '<td><input type="checkbox" aria-label="compare"></td>'
        cells = [f'{box}<td class="run" title="{text(line["folder"])}"><span class="swatch"></span>{name}</td>']
        for place, column in list(enumerate(columns))[1:]:
            value = line.get(column)
            is_metric = bool(split_column(column)[0])
            shown = (
                f"{value:.4f}"
                if isinstance(value, float) and is_metric
                else shorten(show(value), 60)
                if value not in (None, "")
                else ""
            )
            cells.append(f"<td{marks if right[place] else ''}>{text(shown)}</td>")
        return f'<tr data-i="{i}">{"".join(cells)}</tr>'

    body = "\n".join(row(i, line) for i, line in enumerate(lines))
    example = f"{found.metric}&gt;0.9" if not found.minimize else f"{found.metric}&lt;0.5"
    return f"""<h2>Runs</h2>
<div class="bar">
<input type="search" id="filter" placeholder="filter: words, {example}, status=done" aria-label="filter">
<span id="count" class="soft" role="status"></span></div>
<div class="scroll tall"><table id="runs"><thead><tr><th title="tick two runs to compare them">±</th>{head}</tr></thead>
<tbody>
{body}
</tbody></table></div>
<p class="hint">Click on a column's name to sort. Tick two runs to see what differs between them.</p>
<div id="difference"></div>"""


def not_done(folder: Path, problems: dict[str, str]) -> str:
    if not problems:
        return ""
    lines = [
        f"<li>{link(folder / name, folder, name)}: {text(shorten(remark, 300))}</li>"
        for name, remark in list(problems.items())[:MAX_RUNS]
    ]
    more = f"<p>and {len(problems) - MAX_RUNS} more</p>" if len(problems) > MAX_RUNS else ""
    is_long = len(problems) > 12
    items = f'<ul class="plain">{"".join(lines)}</ul>{more}'
    folded = f"<details><summary>{len(problems)} folders</summary>{items}</details>" if is_long else items
    return f"<h2>Not done</h2>{folded}"
