"""Figures of one run: its curves and its confusion matrix. The same input gives the same bytes.

Drawn by matplotlib's object interface (no pyplot, no global state), which is imported on demand.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from folder.history import training_column, validation_column, validation_values
from report.json_files import History
from utils import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

DPI = 100
TRAIN = "#4c78a8"
VALID = "#e4572e"
BEST = "#2e7d32"
MUTED = "#8a8f98"
PALETTE = ["#4c78a8", "#e4572e", "#2e9e5b", "#8e5bb5", "#f2a23a", "#17a2b8", "#d6559c", "#8c6d46", "#6b7280", "#a3b52b"]
STYLE: dict[RcKeyType, object] = {
    "text.parse_math": False,  # a class may be called "a$b"
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa0a6",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


@contextlib.contextmanager
def drawing(path: Path, width: float, height: float, is_laid_out: bool = True) -> Iterator[Figure]:
    """A figure of `width` x `height` inches, written to `path` as PNG when the block ends.

    is_laid_out: fit the panels to the text around them, which takes as long as the drawing itself.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a class name in a script that the font lacks
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1) if is_laid_out else None
        figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
        yield figure
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())


def warm_up() -> None:
    """Do the slow part of a process's first figure in advance: importing and reading fonts, about a second."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().set_title("fonts")
    FigureCanvasAgg(figure).draw()


def shorten(text: str, length: int) -> str:
    """`text` on one line of at most `length` characters; the middle is left out."""
    text = " ".join(str(text).split()) or "''"
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return text[:head] + "…" + text[len(text) - (length - 1 - head) :]


# --- curves -------------------------------------------------------------------------------------------


def history_metrics(history: History, first: Sequence[str] = ()) -> list[str]:
    """The validation metrics in a history: loss, then `first`, then the others in their order."""
    names = [name for row in history for name in validation_values(row)]
    return list(dict.fromkeys(name for name in ("loss", *first, *names) if name in names))


def series(history: History, key: str) -> list[float]:
    """The value of `key` at each epoch; NaN where there is none."""
    values = [row.get(key) for row in history]
    return [float(value) if isinstance(value, int | float) else math.nan for value in values]


def rate_series(history: History, repeats_last: bool = False) -> list[list[float]]:
    """The learning rate of each layer group at each epoch.

    Where an epoch has fewer groups, the others are NaN; `repeats_last`: they have the rate of its last group.
    """
    rates = [row.get("learning_rate") for row in history]
    by_epoch = [rate if isinstance(rate, list) else [rate] for rate in rates]
    num_groups = max(map(len, by_epoch), default=0)
    padded = [[*row, *[row[-1] if repeats_last else None] * (num_groups - len(row))] for row in by_epoch]
    groups = zip(*padded, strict=True)
    return [[float(rate) if isinstance(rate, int | float) else math.nan for rate in group] for group in groups]


def plot_curve(axes: Axes, x: Sequence[float], y: Sequence[float], **style: float | str | None) -> None:
    """A line, with markers at up to 20 points, so that a single epoch can be seen."""
    axes.plot(x, y, marker="o" if len(x) <= 20 else "", **style)  # pyright: ignore[reportArgumentType] (properties of the line, not scalex)


def format_epoch_axis(axes: Axes, epochs: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    first, last = min(epochs), max(epochs)
    margin = max(0.5, (last - first) * 0.02)
    axes.set_xlim(first - margin, last + margin)
    axes.set_xlabel("epoch")


def use_log_scale_if_wide(axes: Axes, values: Sequence[float], ratio: float = 30) -> None:
    """A logarithmic y axis, labelled with plain numbers, when the values are positive and span more than `ratio`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > ratio * min(finite):
        axes.set_yscale("log")
        subs = (1, 2, 5) if max(finite) < 300 * min(finite) else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=10))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def save_history_figure(
    path: Path,
    history: History,
    best_metric: str = "accuracy",
    best_epoch: int | None = None,
) -> None:
    """Loss, every metric and the learning rate of one run over its epochs; the best epoch is marked."""
    if not history:
        return
    names = history_metrics(history, [best_metric])
    num_panels = len(names) + 1
    columns = min(3, num_panels) if num_panels != 4 else 2
    rows = math.ceil(num_panels / columns)
    width, height = 4.7 * columns, 3.5 * rows  # inches; the margins are wide enough for any number on an axis
    margins = {
        "left": 0.85 / width,
        "right": 1 - 0.15 / width,
        "bottom": 0.6 / height,
        "top": 1 - 0.4 / height,
        "wspace": 0.9 / 3.7,
        "hspace": 1 / 2.5,
    }
    with drawing(path, width, height, is_laid_out=False) as figure:
        axes = list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=margins).flat)
        for panel, name in zip(axes, names, strict=False):
            _metric_panel(panel, history, name, best_epoch)
        _rate_panel(axes[len(names)], history)
        for panel in axes[num_panels:]:
            panel.set_axis_off()


def _metric_panel(panel: Axes, history: History, name: str, best_epoch: int | None) -> None:
    epochs = series(history, "epoch")
    train, valid = series(history, training_column(name)), series(history, validation_column(name))
    if any(map(math.isfinite, train)):
        plot_curve(panel, epochs, train, color=TRAIN, label="train")
    plot_curve(panel, epochs, valid, color=VALID, label="valid")
    title = name.replace("_", " ")
    value = valid[epochs.index(best_epoch)] if best_epoch in epochs else math.nan
    if best_epoch is not None and math.isfinite(value):
        panel.axvline(best_epoch, color=BEST, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        ring = {"markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.6, "zorder": 5}
        panel.plot([best_epoch], [value], "o", color=BEST, label=f"best epoch: {best_epoch}", **ring)
        title += f"   {value:.4f} at the best epoch"
    panel.set_title(title)
    format_epoch_axis(panel, epochs)
    if name == "loss":
        use_log_scale_if_wide(panel, train + valid)
    panel.legend(loc="best", fontsize=9)


def _rate_panel(panel: Axes, history: History) -> None:
    epochs = series(history, "epoch")
    groups = rate_series(history, repeats_last=True)
    labels = [f"layer group {number + 1}" for number in range(len(groups))]
    if len(groups) == 3:
        labels = ["body, early", "body, late", "head"]
    for number, (rates, label) in enumerate(zip(groups, labels, strict=True)):
        plot_curve(panel, epochs, rates, color=PALETTE[number % len(PALETTE)], label=label)
    panel.set_title("learning rate   at the end of each epoch")
    format_epoch_axis(panel, epochs)
    positive = [rate for rates in groups for rate in rates if rate > 0]
    if len(groups) > 1:
        use_log_scale_if_wide(panel, [rate for rate in positive if rate > max(positive) * 1e-4])
        if panel.get_yscale() == "log":
            panel.set_ylim(bottom=max(min(positive) * 0.8, max(positive) * 1e-4))
        panel.legend(loc="best", fontsize=9)
    elif panel.get_yscale() == "linear":
        panel.set_ylim(bottom=0)


# --- confusion matrix -----------------------------------------------------------------------------------


def save_confusion_matrix(path: Path, matrix: np.ndarray, classes: Sequence[str], title: str = "") -> None:
    """matrix (K, K): number of images of the true class (row) by predicted class (column). Colour: share of the row."""
    import numpy as np

    num_classes = len(classes)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)  # (K, K)
    length = 28 if num_classes <= 40 else 18
    names = [shorten(name, length) for name in classes]
    margin = 0.9 + 0.075 * max(map(len, names))  # inches, for the names
    side = max(2.6, _cell_size(num_classes) * num_classes)
    with drawing(path, side + margin + 0.9, side + margin + 0.3) as figure:
        from matplotlib.colors import PowerNorm

        panel = figure.subplots()
        panel.grid(False)
        # The square root makes rare confusions visible beside a full diagonal.
        image = panel.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        bar = figure.colorbar(
            image, ax=panel, fraction=0.05, shrink=0.5, aspect=24, pad=0.02, ticks=[0, 0.05, 0.2, 0.5, 1]
        )
        bar.set_ticklabels(["0", "5 %", "20 %", "50 %", "100 %"])
        bar.ax.spines["outline"].set_visible(False)
        bar.set_label("share of the true class")
        panel.spines[:].set_visible(False)
        panel.set_title(title)
        panel.set_xlabel("predicted")
        panel.set_ylabel("true")
        _class_ticks(panel, names)
        if num_classes <= 30:
            _write_counts(panel, matrix, share, 9 if num_classes <= 12 else 7)


def _cell_size(num_classes: int) -> float:
    """Inches per class."""
    if num_classes <= 12:
        return 0.62
    if num_classes <= 30:
        return 0.42
    return 0.16 if num_classes <= 150 else 12 / num_classes


def _class_ticks(panel: Axes, names: Sequence[str]) -> None:
    """The name of every class up to 150 classes; class numbers, as far as they fit, beyond."""
    num_classes = len(names)
    size = 9 if num_classes <= 30 else 7
    if num_classes <= 150:
        short = max(map(len, names)) <= (6 if num_classes <= 12 else 2)
        panel.set_xticks(range(num_classes), names, fontsize=size)
        if not short:
            slant = 45 if num_classes <= 30 else 90
            panel.tick_params(axis="x", labelrotation=slant)
            for label in panel.get_xticklabels():
                label.set(
                    ha="right" if slant == 45 else "center",
                    rotation_mode="anchor" if slant == 45 else "default",
                )
        panel.set_yticks(range(num_classes), names, fontsize=size)
    panel.tick_params(length=0 if num_classes <= 150 else 3)


def _write_counts(panel: Axes, matrix: np.ndarray, share: np.ndarray, size: int) -> None:
    for row, column in zip(*matrix.nonzero(), strict=True):
        colour = "white" if share[row, column] > 0.4 else "#222222"
        count = int(matrix[row, column])
        text = f"{count}" if count < 10_000 else f"{count / 1000:.0f}k"
        panel.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
