"""Figures of many runs: their curves, the metric against each parameter, the importance of parameters.

What several pictures need to know of the runs is worked out once, in `compare`. Runs that differ in seed or fold
alone are replicates of one setting, and are drawn as one: their mean, and a band from the least to the greatest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from folder.history import split_column
from report.figures import BEST, MUTED, PALETTE, TRAIN, curve, drawing, epoch_axis, log_if_wide, shorten
from report.importance import importance, is_logarithmic
from report.rows import REPLICATES, Row, differing, grouped, show
from report.tables import compared_metric, is_less_better, make_table
from report.tree import natural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES, PARAMETERS, IMPORTANCE = "history_plots.png", "parameters.png", "importance.png"
NUM_NAMED, NUM_PANELS, NUM_CATEGORIES = 10, 12, 12
GREY = "#c3c8cf"


@dataclass(frozen=True)
class Comparison:
    """Runs that are looked at together, and by what."""

    rows: list[Row]  # best first
    groups: list[list[Row]]  # the same by setting: what differs in seed or fold alone is together; best first
    keys: list[str]  # the parameters that differ, without seed and fold
    metric: str  # what they are compared by: its validation value
    minimize: bool

    def value(self, row: Row) -> float:
        """The validation value of the metric with the best weights; NaN when there is none."""
        value = row.best.get(self.metric)
        return float(value) if isinstance(value, int | float) else math.nan

    def label(self, group: Sequence[Row]) -> str:
        """What tells a setting from the others, for a legend."""
        text = ", ".join(f"{key} {brief(group[0].params.get(key))}" for key in self.keys)
        if not text or len(text) > 90:
            text = group[0].name if len(group) == 1 or text else ""
        count = f"{len(group)} {replicates(group)}" if len(group) > 1 else ""
        return f"{text} ({count})" if text and count else text or count


def replicates(rows: Sequence[Row]) -> str:
    """ "seeds", "folds" or "seeds and folds": what the runs of a setting differ in."""
    return " and ".join(f"{key}s" for key in REPLICATES if key in differing(rows)) or "runs"


def brief(value: Any) -> str:
    """A parameter for a legend or an axis: three digits, "none" for nothing."""
    return f"{value:.3g}" if isinstance(value, float) else show(value) or "none"


def compare(rows: Sequence[Row], sort: str | None = None) -> Comparison:
    """Put rows in order, best first. sort: a metric (its validation value) or any column. UserError for another."""
    _, cells = make_table(rows, sort)
    by_name = {row.name: row for row in rows}
    ordered = [by_name[line["folder"]] for line in cells]
    metric = compared_metric(rows)
    split, wanted = split_column(sort or metric)
    is_metric = split in ("", "val") and any(wanted in row.best for row in rows)
    metric = wanted if is_metric else metric
    minimize = is_less_better(rows, metric)
    keys = [key for key in differing(ordered) if key not in REPLICATES]
    found = Comparison(ordered, grouped(ordered), keys, metric, minimize)
    if is_metric:
        sign = 1 if minimize else -1

        def rank(group: list[Row]) -> float:
            values = [value for value in map(found.value, group) if math.isfinite(value)]
            return sign * sum(values) / len(values) if values else math.inf

        found.groups.sort(key=rank)
    return found


def draw(rows: Sequence[Row], folder: Path, sort: str | None = None) -> tuple[list[Path], list[str]]:
    """(the pictures written into `folder`, why others were not). rows: with a history. UserError as compare."""
    if not rows:
        return [], []
    found, remarks = compare(rows, sort), []
    save_curves(folder / CURVES, found)
    written = [folder / CURVES]
    values, remark = importance(found.groups, found.keys, found.value)
    if found.keys:
        save_parameters(folder / PARAMETERS, found, sorted(found.keys, key=lambda key: -values.get(key, 0)))
        written.append(folder / PARAMETERS)
    if values:
        save_importance(folder / IMPORTANCE, found, values, remark)
        written.append(folder / IMPORTANCE)
    else:
        remarks.append(f"no {IMPORTANCE}: {remark}")
        (folder / IMPORTANCE).unlink(missing_ok=True)  # an earlier one would be of other runs
    return written, remarks


# --- curves ---------------------------------------------------------------------------------------------


def mean_curve(rows: Sequence[Row], key: str) -> tuple[list[int], list[float], list[float], list[float]]:
    """(epochs, mean, least, greatest) over the epochs that all of the rows have."""
    tables = [
        {row["epoch"]: float(row[key]) for row in run.history if isinstance(row.get(key), int | float)} for run in rows
    ]
    tables = [table for table in tables if table]
    epochs = sorted(set.intersection(*map(set, tables))) if tables else []
    values = [[table[epoch] for table in tables] for epoch in epochs]
    return epochs, [sum(v) / len(v) for v in values], [min(v) for v in values], [max(v) for v in values]


def save_curves(path: Path, found: Comparison, num_named: int = NUM_NAMED) -> None:
    """Loss and metrics of all runs, training above validation.

    The first `num_named` settings have a colour and a line in the legend, the others are thin and grey. Where a run
    was pruned its line ends in a cross.
    """
    chosen = dict.fromkeys([found.metric, *[row.best_metric for row in found.rows]])
    names = ["loss", *[name for name in chosen if name != "loss"][:3]]
    num_lines = min(num_named + 2, len(found.groups) + 1)
    with drawing(path, max(9.6, 4.8 * len(names)), 7.4 + 0.2 * num_lines) as figure:
        grid = figure.subplots(2, len(names), squeeze=False)
        for column, name in enumerate(names):
            for row, split in enumerate(("train", "val")):
                _curves_panel(grid[row][column], found.groups, f"{split}_{name}", num_named)
        handles, labels = _legend(found, num_named)
        figure.legend(handles, labels, loc="outside lower left", ncols=1, fontsize=9, alignment="left",
                      title=_legend_title(found))  # fmt: skip


def _legend_title(found: Comparison) -> str:
    title = f"{len(found.rows)} runs" if len(found.rows) > 1 else "1 run"
    if len(found.groups) > 1:
        title += f" of {len(found.groups)} settings, best first by validation {found.metric.replace('_', ' ')}"
    banded = [group for group in found.groups if len(group) > 1]
    return title + (f"; line: mean over {replicates(banded[0])}, band: least to greatest" if banded else "")


def _legend(found: Comparison, num_named: int) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    named, rest = found.groups[:num_named], found.groups[num_named:]
    handles = [Line2D([], [], color=PALETTE[rank % len(PALETTE)], linewidth=2.4) for rank in range(len(named))]
    labels = [shorten(found.label(group), 110) for group in named]
    if rest:
        handles.append(Line2D([], [], color=GREY, linewidth=2.4))
        labels.append(f"{len(rest)} more")
    if pruned := sum(row.status == "pruned" for row in found.rows):
        handles.append(Line2D([], [], color=MUTED, linewidth=0, marker="x"))
        labels.append(f"pruned ({pruned})")
    return handles, labels


def _curves_panel(panel: Axes, groups: Sequence[list[Row]], key: str, num_named: int) -> None:
    from matplotlib.collections import LineCollection

    means = [mean_curve(group, key) for group in groups]
    thin = [list(zip(epochs, mean, strict=True)) for epochs, mean, _, _ in means[num_named:] if epochs]
    panel.add_collection(LineCollection(thin, colors=GREY, linewidths=0.7 if len(thin) > 40 else 1.0))
    for rank in reversed(range(min(num_named, len(groups)))):  # the best on top
        epochs, mean, least, greatest = means[rank]
        colour = PALETTE[rank % len(PALETTE)]
        if len(groups[rank]) > 1:
            panel.fill_between(epochs, least, greatest, color=colour, alpha=0.15, linewidth=0)
        curve(panel, epochs, mean, color=colour, linewidth=1.7, markersize=4)
    for group, (epochs, mean, _, _) in zip(groups, means, strict=True):
        if epochs and all(row.status == "pruned" for row in group):
            panel.plot(epochs[-1], mean[-1], "x", color=MUTED, markersize=4, markeredgewidth=1, zorder=1.5)
    everything = [value for _, mean, _, _ in means for value in mean]
    split, _, name = key.partition("_")
    panel.set_title(f"{ {'train': 'training', 'val': 'validation'}[split] } {name.replace('_', ' ')}")
    epoch_axis(panel, [epoch for epochs, *_ in means for epoch in epochs] or [1])
    if not everything:
        panel.text(0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center", color=MUTED)
    elif name == "loss":
        log_if_wide(panel, everything)
    panel.autoscale_view(scalex=False)


# --- the metric against each parameter --------------------------------------------------------------------


def save_parameters(path: Path, found: Comparison, keys: Sequence[str]) -> None:
    """One panel per parameter of `keys` (at most NUM_PANELS): each run a point, the best one ringed."""
    shown = keys[:NUM_PANELS]
    columns = min(len(shown), 4 if len(shown) > 6 else 3)
    rows = -(-len(shown) // columns)
    left_out = f"   {len(shown)} of {len(keys)} parameters" if len(keys) > len(shown) else ""
    with drawing(path, max(5.2, 3.9 * columns), 3.3 * rows + 0.7) as figure:
        figure.suptitle(f"validation {found.metric.replace('_', ' ')} of {len(found.rows)} runs{left_out}",
                        x=0.01, ha="left", fontsize=11)  # fmt: skip
        panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
        for panel, key in zip(panels, shown, strict=False):
            _parameter_panel(panel, found, key)
        for panel in panels[len(shown) :]:
            panel.set_axis_off()
        if found.metric == "loss":
            log_if_wide(panels[0], list(map(found.value, found.rows)))
        _parameter_legend(figure, found)


def _parameter_legend(figure: Figure, found: Comparison) -> None:
    from matplotlib.lines import Line2D

    done = sum(row.status == "done" for row in found.rows)
    style: dict[str, Any] = {"linewidth": 0, "marker": "o", "markersize": 5}
    entries = [(Line2D([], [], color=TRAIN, **style), f"done ({done})")] if done else []
    if done < len(found.rows):
        open_circle = Line2D([], [], color=MUTED, markerfacecolor="none", **style)
        entries.append((open_circle, f"not run to its end ({len(found.rows) - done})"))
    entries.append((Line2D([], [], color=BEST, linewidth=0, marker="o", markersize=9, markerfacecolor="none"), "best"))
    entries.append((Line2D([], [], color=MUTED, linewidth=1), "median"))
    figure.legend(*zip(*entries, strict=True), loc="outside lower left", ncols=4, fontsize=9)


def is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _parameter_panel(panel: Axes, found: Comparison, key: str) -> None:
    values = [row.params.get(key) for row in found.rows]
    distinct = sorted({value for value in values if is_number(value)})
    if all(map(is_number, values)):
        places = [float(value) for value in values if value is not None]
        if is_log := is_logarithmic(places):
            panel.set_xscale("log")
        _few_ticks(panel, distinct, is_log)
        medians, spread = distinct if len(distinct) <= NUM_CATEGORIES else [], 0.0
    else:
        names = [shorten(brief(value), 22) for value in values]
        kept = [name for name, _ in Counter(names).most_common(NUM_CATEGORIES)]
        kept = sorted(kept, key=natural)
        places = [float(kept.index(name)) if name in kept else math.nan for name in names]
        spread = 0.5 if len(places) > 40 else 0.0  # of very many points, some beside the others
        panel.set_xticks(range(len(kept)), kept, fontsize=8, rotation=30 if max(map(len, kept)) * len(kept) > 34 else 0)
        panel.set_xlim(-0.6, len(kept) - 0.4)
        medians = range(len(kept))
        key += f" ({len(kept)} of {len(set(names))} values)" if len(set(names)) > len(kept) else ""
    _points(panel, found, places, medians, spread)
    panel.set_title(shorten(key, 40))


def _few_ticks(panel: Axes, distinct: Sequence[float], is_log: bool) -> None:
    """The values themselves while there are few, plain numbers otherwise."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    panel.xaxis.set_minor_formatter(NullFormatter())
    if len(distinct) <= 5:
        panel.set_xticks(distinct, [f"{value:g}" for value in distinct], fontsize=8)
        panel.minorticks_off()
        return
    panel.xaxis.set_major_locator(LogLocator(numticks=6) if is_log else MaxNLocator(nbins=5))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.tick_params(axis="x", labelsize=8)


def _points(
    panel: Axes, found: Comparison, places: Sequence[float], medians: Sequence[float], spread: float = 0
) -> None:
    """Points at `places`, and the median of the runs that are done at each of `medians`, joined by a line.

    spread: over so much of the axis the points of one place are strewn.
    """
    from statistics import median

    results = list(map(found.value, found.rows))
    is_done = [row.status == "done" for row in found.rows]
    size = 34 if len(places) <= 40 else 20 if len(places) <= 150 else 12
    strewn = [place + spread * (number * 0.618 % 1 - 0.5) for number, place in enumerate(places)]
    for done in (False, True):
        x = [place for place, flag in zip(strewn, is_done, strict=True) if flag is done]
        y = [value for value, flag in zip(results, is_done, strict=True) if flag is done]
        colours: dict[str, Any] = (
            {"c": TRAIN, "alpha": 0.65, "linewidths": 0} if done else {"edgecolors": MUTED, "facecolors": "none"}
        )
        panel.scatter(x, y, s=size, zorder=3, **colours)
    of_place = {
        place: [v for v, p, d in zip(results, places, is_done, strict=True) if d and p == place and math.isfinite(v)]
        for place in medians
    }
    line = [(place, median(values)) for place, values in of_place.items() if values]
    panel.plot([place for place, _ in line], [value for _, value in line], color=MUTED, linewidth=1, zorder=2)
    if results and math.isfinite(results[0]):
        panel.plot(strewn[0], results[0], "o", color=BEST, markersize=9, markerfacecolor="none", zorder=4)


def save_importance(path: Path, found: Comparison, values: dict[str, float], remark: str) -> None:
    """values: parameter -> share of the variance, see importance."""
    ordered = sorted(values.items(), key=lambda item: item[1])[-20:]
    with drawing(path, 7.6, 1.3 + 0.34 * len(ordered)) as figure:
        panel = figure.subplots()
        panel.barh([shorten(key, 40) for key, _ in ordered], [value for _, value in ordered], color=TRAIN, height=0.62)
        for place, (_, value) in enumerate(ordered):
            text = f"{value:.0%}" if value >= 0.01 else "< 1%"
            panel.text(value + 0.01, place, text, va="center", fontsize=9)
        panel.set_xlim(0, max(1e-3, max(values.values()) * 1.12))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panel.grid(axis="y", visible=False)
        panel.set_title(f"importance of the parameters for validation {found.metric.replace('_', ' ')}")
        panel.set_xlabel(remark, fontsize=9, loc="left", color="#444444")
