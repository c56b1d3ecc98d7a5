"""parameters.png and importance.png: the metric against each parameter, and how much each parameter matters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from report.figures import BEST, MUTED, TRAIN, drawing, shorten, use_log_scale_if_wide
from report.importance import is_logarithmic
from report.plots.ranking import RankedRuns, format_brief, is_number
from report.tree import natural_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

PARAMETERS = "parameters.png"
IMPORTANCE = "importance.png"
NUM_PANELS = 12  # parameters in one figure
NUM_CATEGORIES = 12  # values on one axis


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

    done = sum(row.is_done for row in ranked.rows)

    def circle(colour: str, size: float, fill: str) -> Line2D:
        return Line2D([], [], color=colour, linewidth=0, marker="o", markersize=size, markerfacecolor=fill)

    entries = [(circle(TRAIN, 5, TRAIN), f"done ({done})")] if done else []
    if done < len(ranked.rows):
        entries.append((circle(MUTED, 5, "none"), f"stopped early ({len(ranked.rows) - done})"))
    entries.append((circle(BEST, 9, "none"), "best"))
    entries.append((Line2D([], [], color=MUTED, linewidth=1), "median"))
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside lower left", ncols=4, fontsize=9)


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
    is_done = [row.is_done for row in ranked.rows]
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
