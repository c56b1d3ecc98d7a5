"""history_plots.png: the curves of many runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from folder.history import HISTORY_SPLITS, join_column, split_column
from report.figures import MUTED, PALETTE, drawing, format_epoch_axis, plot_curve, shorten, use_log_scale_if_wide
from report.plots.ranking import NUM_NAMED, RankedRuns, name_replicates
from report.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

CURVES = "history_plots.png"
GREY = "#c3c8cf"


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
            for row, split in enumerate(HISTORY_SPLITS):
                _curves_panel(grid[row][column], ranked.groups, join_column(split, name), num_named)
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
    split, name = split_column(key)
    panel.set_title(f"{'training' if split == 'train' else 'validation'} {name.replace('_', ' ')}")
    format_epoch_axis(panel, [epoch for epochs, *_ in means for epoch in epochs] or [1])
    if not everything:
        panel.text(0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center", color=MUTED)
    elif name == "loss":
        use_log_scale_if_wide(panel, everything)
    panel.autoscale_view(scalex=False)
