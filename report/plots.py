"""Figures of many runs: their curves, the metric against each parameter, the importance of the parameters.

All of them start from `rank_runs`. Runs that differ in seed or fold alone are replicates of one setting and are drawn
as one: their mean, and a band from the lowest to the highest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TypeGuard

from folder.history import split_column
from report.figures import (
    BEST,
    MUTED,
    PALETTE,
    TRAIN,
    drawing,
    format_epoch_axis,
    plot_curve,
    shorten,
    use_log_scale_if_wide,
)
from report.importance import importance, is_logarithmic
from report.rows import Row
from report.settings import REPLICATE_KEYS, differing_keys, format_value, group_replicates, setting_keys
from report.tables import is_lower_better, make_table, mean_of, most_common_metric
from report.tree import natural_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

CURVES = "history_plots.png"
PARAMETERS = "parameters.png"
IMPORTANCE = "importance.png"
NUM_NAMED = 10  # settings with a colour and a line in the legend
NUM_PANELS = 12  # parameters in one figure
NUM_CATEGORIES = 12  # values on one axis
GREY = "#c3c8cf"


@dataclass(frozen=True)
class RankedRuns:
    """Runs in order, and the metric that ranks them."""

    rows: list[Row]  # best first
    groups: list[list[Row]]  # the same rows by setting, best first
    keys: list[str]  # the parameters that differ, without seed and fold
    metric: str  # its validation value ranks the runs
    minimize: bool

    def value(self, row: Row) -> float:
        """The validation value of the metric with the best weights; NaN when there is none."""
        value = row.best.get(self.metric)
        return float(value) if isinstance(value, int | float) else math.nan

    def label(self, group: Sequence[Row]) -> str:
        """What tells a setting from the others, for a legend."""
        text = ", ".join(f"{key} {format_brief(group[0].params.get(key))}" for key in self.keys)
        if not text or len(text) > 90:
            text = group[0].name if len(group) == 1 or text else ""
        count = f"{len(group)} {name_replicates(group)}" if len(group) > 1 else ""
        return f"{text} ({count})" if text and count else text or count


def name_replicates(rows: Sequence[Row]) -> str:
    """What the runs of a setting differ in: "seeds", "folds" or "seeds and folds"."""
    keys = differing_keys(rows)
    return " and ".join(f"{key}s" for key in REPLICATE_KEYS if key in keys) or "runs"


def format_brief(value: object) -> str:
    """A parameter for a legend or an axis: three digits, "none" for null."""
    return f"{value:.3g}" if isinstance(value, float) else format_value(value) or "none"


def rank_runs(rows: Sequence[Row], sort: str | None = None) -> RankedRuns:
    """`rows` best first. sort: a metric (its validation value) or any column. UserError for an unknown one."""
    # The order of the runs is that of their table.
    by_name = {row.name: row for row in rows}
    ordered = [by_name[str(line["folder"])] for line in make_table(rows, sort).lines]

    # Ranked by the metric that `sort` names; by the most common one when it names another column.
    metric = most_common_metric(rows)
    split, sort_name = split_column(sort or metric)
    is_metric = split in ("", "val") and any(sort_name in row.best for row in rows)
    metric = sort_name if is_metric else metric
    minimize = is_lower_better(rows, metric)
    keys = setting_keys(differing_keys(ordered))
    ranked = RankedRuns(ordered, group_replicates(ordered), keys, metric, minimize)

    # Settings in the order of their means.
    if is_metric:

        def rank(group: list[Row]) -> float:
            mean = mean_of(value for value in map(ranked.value, group) if math.isfinite(value))
            if mean is None:
                return math.inf
            return mean if minimize else -mean

        ranked.groups.sort(key=rank)
    return ranked


def draw_figures(ranked: RankedRuns, folder: Path) -> tuple[list[Path], list[str]]:
    """(the figures written into `folder`, why others were not). The runs need their history."""
    if not ranked.rows:
        return [], []
    remarks = []
    save_curves(folder / CURVES, ranked)
    written = [folder / CURVES]
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


# --- curves ---------------------------------------------------------------------------------------------


def mean_curve(rows: Sequence[Row], key: str) -> tuple[list[int], list[float], list[float], list[float]]:
    """(epochs, mean, lowest, highest) over the epochs that all rows have."""
    tables = [
        {row["epoch"]: float(row[key]) for row in run.history if isinstance(row.get(key), int | float)} for run in rows
    ]
    tables = [table for table in tables if table]
    epochs = sorted(set.intersection(*map(set, tables))) if tables else []
    values = [[table[epoch] for table in tables] for epoch in epochs]
    return epochs, [sum(v) / len(v) for v in values], [min(v) for v in values], [max(v) for v in values]


def save_curves(path: Path, ranked: RankedRuns, num_named: int = NUM_NAMED) -> None:
    """Loss and metrics of all runs, training above validation.

    The first `num_named` settings have a colour and a line in the legend, the others are thin and grey. The line of a
    pruned run ends in a cross.
    """
    chosen = dict.fromkeys([ranked.metric, *[row.best_metric for row in ranked.rows]])
    names = ["loss", *[name for name in chosen if name != "loss"][:3]]
    num_lines = min(num_named + 2, len(ranked.groups) + 1)
    with drawing(path, max(9.6, 4.8 * len(names)), 7.4 + 0.2 * num_lines) as figure:
        grid = figure.subplots(2, len(names), squeeze=False)
        for column, name in enumerate(names):
            for row, split in enumerate(("train", "val")):
                _curves_panel(grid[row][column], ranked.groups, f"{split}_{name}", num_named)
        handles, labels = _legend(ranked, num_named)
        title = _legend_title(ranked)
        figure.legend(handles, labels, loc="outside lower left", ncols=1, fontsize=9, alignment="left", title=title)


def _legend_title(ranked: RankedRuns) -> str:
    title = f"{len(ranked.rows)} runs" if len(ranked.rows) > 1 else "1 run"
    if len(ranked.groups) > 1:
        title += f" of {len(ranked.groups)} settings, best first by validation {ranked.metric.replace('_', ' ')}"
    banded = [group for group in ranked.groups if len(group) > 1]
    return title + (f"; line: mean over {name_replicates(banded[0])}, band: lowest to highest" if banded else "")


def _legend(ranked: RankedRuns, num_named: int) -> tuple[list[Line2D], list[str]]:
    from matplotlib.lines import Line2D

    named, rest = ranked.groups[:num_named], ranked.groups[num_named:]
    handles = [Line2D([], [], color=PALETTE[rank % len(PALETTE)], linewidth=2.4) for rank in range(len(named))]
    labels = [shorten(ranked.label(group), 110) for group in named]
    if rest:
        handles.append(Line2D([], [], color=GREY, linewidth=2.4))
        labels.append(f"{len(rest)} more")
    if pruned := sum(row.status == "pruned" for row in ranked.rows):
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
        plot_curve(panel, epochs, mean, color=colour, linewidth=1.7, markersize=4)
    for group, (epochs, mean, _, _) in zip(groups, means, strict=True):
        if epochs and all(row.status == "pruned" for row in group):
            panel.plot(epochs[-1], mean[-1], "x", color=MUTED, markersize=4, markeredgewidth=1, zorder=1.5)
    everything = [value for _, mean, _, _ in means for value in mean]
    split, _, name = key.partition("_")
    panel.set_title(f"{'training' if split == 'train' else 'validation'} {name.replace('_', ' ')}")
    format_epoch_axis(panel, [epoch for epochs, *_ in means for epoch in epochs] or [1])
    if not everything:
        panel.text(0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center", color=MUTED)
    elif name == "loss":
        use_log_scale_if_wide(panel, everything)
    panel.autoscale_view(scalex=False)


# --- the metric against each parameter --------------------------------------------------------------------


def save_parameters(path: Path, ranked: RankedRuns, keys: Sequence[str]) -> None:
    """One panel per parameter of `keys` (at most NUM_PANELS): each run a point, the best one ringed."""
    shown = keys[:NUM_PANELS]
    columns = min(len(shown), 4 if len(shown) > 6 else 3)
    rows = -(-len(shown) // columns)
    left_out = f"   {len(shown)} of {len(keys)} parameters" if len(keys) > len(shown) else ""
    with drawing(path, max(5.2, 3.9 * columns), 3.3 * rows + 0.7) as figure:
        title = f"validation {ranked.metric.replace('_', ' ')} of {len(ranked.rows)} runs{left_out}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
        for panel, key in zip(panels, shown, strict=False):
            _parameter_panel(panel, ranked, key)
        for panel in panels[len(shown) :]:
            panel.set_axis_off()
        if ranked.metric == "loss":
            use_log_scale_if_wide(panels[0], list(map(ranked.value, ranked.rows)))
        _parameter_legend(figure, ranked)


def _parameter_legend(figure: Figure, ranked: RankedRuns) -> None:
    from matplotlib.lines import Line2D

    done = sum(row.status == "done" for row in ranked.rows)

    def circle(colour: str, size: float, fill: str) -> Line2D:
        return Line2D([], [], color=colour, linewidth=0, marker="o", markersize=size, markerfacecolor=fill)

    entries = [(circle(TRAIN, 5, TRAIN), f"done ({done})")] if done else []
    if done < len(ranked.rows):
        entries.append((circle(MUTED, 5, "none"), f"stopped early ({len(ranked.rows) - done})"))
    entries.append((circle(BEST, 9, "none"), "best"))
    entries.append((Line2D([], [], color=MUTED, linewidth=1), "median"))
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside lower left", ncols=4, fontsize=9)


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _parameter_panel(panel: Axes, ranked: RankedRuns, key: str) -> None:
    values = [row.params.get(key) for row in ranked.rows]
    numbers = [float(value) for value in values if is_number(value)]
    if len(numbers) == len(values):
        _number_panel(panel, ranked, numbers)
        title = key
    else:
        names = [shorten(format_brief(value), 22) for value in values]
        num_shown, num_all = _category_panel(panel, ranked, names)
        title = f"{key} ({num_shown} of {num_all} values)" if num_shown < num_all else key
    panel.set_title(shorten(title, 40))


def _number_panel(panel: Axes, ranked: RankedRuns, places: Sequence[float]) -> None:
    """The runs at the values of a numeric parameter."""
    distinct = sorted(set(places))
    is_log = is_logarithmic(places)
    if is_log:
        panel.set_xscale("log")
    _few_ticks(panel, distinct, is_log)
    _points(panel, ranked, places, distinct if len(distinct) <= NUM_CATEGORIES else [])


def _category_panel(panel: Axes, ranked: RankedRuns, names: Sequence[str]) -> tuple[int, int]:
    """The runs by category, the most common ones only -> (categories shown, all categories)."""
    shown = sorted((name for name, _ in Counter(names).most_common(NUM_CATEGORIES)), key=natural_key)
    places = [float(shown.index(name)) if name in shown else math.nan for name in names]
    spread = 0.5 if len(places) > 40 else 0.0  # so that many points of one category do not hide each other
    is_long = max(map(len, shown)) * len(shown) > 34
    panel.set_xticks(range(len(shown)), shown, fontsize=8, rotation=30 if is_long else 0)
    panel.set_xlim(-0.6, len(shown) - 0.4)
    _points(panel, ranked, places, [float(place) for place in range(len(shown))], spread)
    return len(shown), len(set(names))


def _few_ticks(panel: Axes, distinct: Sequence[float], is_log: bool) -> None:
    """The values themselves when there are few, rounded numbers otherwise."""
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
    panel: Axes, ranked: RankedRuns, places: Sequence[float], medians: Sequence[float], spread: float = 0
) -> None:
    """A point per run at `places`, and a line through the medians of the finished runs at each of `medians`.

    spread: width of the range, around its place, that a point is moved within.
    """
    results = list(map(ranked.value, ranked.rows))
    is_done = [row.status == "done" for row in ranked.rows]
    size = 34 if len(places) <= 40 else 20 if len(places) <= 150 else 12
    moved = [place + spread * (number * 0.618 % 1 - 0.5) for number, place in enumerate(places)]
    points = list(zip(moved, results, is_done, strict=True))

    # Unfinished runs are open circles below the finished ones.
    open_x, open_y = [x for x, _, done in points if not done], [y for _, y, done in points if not done]
    panel.scatter(open_x, open_y, s=size, zorder=3, edgecolors=MUTED, facecolors="none")
    done_x, done_y = [x for x, _, done in points if done], [y for _, y, done in points if done]
    panel.scatter(done_x, done_y, s=size, zorder=3, c=TRAIN, alpha=0.65, linewidths=0)

    # The medians.
    line = []
    for place in medians:
        values = [v for v, p, d in zip(results, places, is_done, strict=True) if d and p == place and math.isfinite(v)]
        line += [(place, median(values))] if values else []
    panel.plot([place for place, _ in line], [value for _, value in line], color=MUTED, linewidth=1, zorder=2)

    # A ring around the best run.
    if results and math.isfinite(results[0]):
        panel.plot(moved[0], results[0], "o", color=BEST, markersize=9, markerfacecolor="none", zorder=4)


def save_importance(path: Path, ranked: RankedRuns, shares: Mapping[str, float], basis: str) -> None:
    """A bar per parameter, at most 20. shares: of the variance; basis: what they rest on (see importance)."""
    ordered = sorted(shares.items(), key=lambda item: item[1])[-20:]
    with drawing(path, 7.6, 1.3 + 0.34 * len(ordered)) as figure:
        panel = figure.subplots()
        panel.barh([shorten(key, 40) for key, _ in ordered], [share for _, share in ordered], color=TRAIN, height=0.62)
        for place, (_, share) in enumerate(ordered):
            text = f"{share:.0%}" if share >= 0.01 else "< 1%"
            panel.text(share + 0.01, place, text, va="center", fontsize=9)
        panel.set_xlim(0, max(1e-3, max(shares.values()) * 1.12))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panel.grid(axis="y", visible=False)
        panel.set_title(f"importance of the parameters for validation {ranked.metric.replace('_', ' ')}")
        panel.set_xlabel(basis, fontsize=9, loc="left", color="#444444")
