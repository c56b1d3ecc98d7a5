"""Figures of a run: curves, confusion matrix, sheets of images. Same input, same bytes.

Curves and matrices are drawn by matplotlib's object interface (no pyplot, no global state), image sheets by
Pillow, which is there in milliseconds. Both are imported on demand.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from folder.history import training_column, validation_column, validation_values
from utils import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import ImageFont

DPI = 100
TRAIN, VALID, BEST, MUTED = "#4c78a8", "#e4572e", "#2e7d32", "#8a8f98"
PALETTE = ("#4c78a8", "#e4572e", "#2e9e5b", "#8e5bb5", "#f2a23a",
           "#17a2b8", "#d6559c", "#8c6d46", "#6b7280", "#a3b52b")  # fmt: skip
STYLE: Any = {
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

    is_laid_out: panels make room for what is written around them, which takes as long as the drawing itself.
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
    """Import and read what the first figure of a process needs, about a second's work, before it is asked for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().set_title("fonts")
    FigureCanvasAgg(figure).draw()


def shorten(text: str, length: int) -> str:
    """At most `length` characters on one line, the middle left out."""
    text = " ".join(str(text).split()) or "''"
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return text[:head] + "…" + text[len(text) - (length - 1 - head) :]


# --- curves -------------------------------------------------------------------------------------------


def metric_names(history: Sequence[dict[str, Any]], first: Sequence[str] = ()) -> list[str]:
    """The metrics of a history: loss, then `first`, then the others as they come."""
    names = [name for row in history for name in validation_values(row)]
    return list(dict.fromkeys(name for name in ("loss", *first, *names) if name in names))


def series(history: Sequence[dict[str, Any]], key: str) -> list[float]:
    """One number per row; NaN where there is none."""
    values = [row.get(key) for row in history]
    return [float(value) if isinstance(value, int | float) else math.nan for value in values]


def curve(axes: Axes, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
    """A line; with markers while there are few points, so that one epoch is seen too."""
    axes.plot(x, y, marker="o" if len(x) <= 20 else "", **style)


def epoch_axis(axes: Axes, epochs: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    first, last = min(epochs), max(epochs)
    margin = max(0.5, (last - first) * 0.02)
    axes.set_xlim(first - margin, last + margin)
    axes.set_xlabel("epoch")


def log_if_wide(axes: Axes, values: Sequence[float], ratio: float = 30) -> None:
    """A logarithmic axis when the values span more than `ratio`, with plain numbers on it."""
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
    history: Sequence[dict[str, Any]],
    best_metric: str = "accuracy",
    best_epoch: int | None = None,
) -> None:
    """Loss, every metric and the learning rate of one run over its epochs; the best epoch is marked."""
    if not history:
        return
    names = metric_names(history, [best_metric])
    panels = len(names) + 1
    columns = min(3, panels) if panels != 4 else 2
    rows = -(-panels // columns)
    width, height = 4.7 * columns, 3.5 * rows  # inches; the margins are wide enough for any number on an axis
    margins = {"left": 0.85 / width, "right": 1 - 0.15 / width, "bottom": 0.6 / height, "top": 1 - 0.4 / height,
               "wspace": 0.9 / 3.7, "hspace": 1 / 2.5}  # fmt: skip
    with drawing(path, width, height, is_laid_out=False) as figure:
        axes = list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=margins).flat)
        for panel, name in zip(axes, names, strict=False):
            _metric_panel(panel, history, name, best_epoch)
        _rate_panel(axes[len(names)], history)
        for panel in axes[panels:]:
            panel.set_axis_off()


def _metric_panel(panel: Axes, history: Sequence[dict[str, Any]], name: str, best_epoch: int | None) -> None:
    epochs = series(history, "epoch")
    train, valid = series(history, training_column(name)), series(history, validation_column(name))
    if any(map(math.isfinite, train)):
        curve(panel, epochs, train, color=TRAIN, label="train")
    curve(panel, epochs, valid, color=VALID, label="valid")
    title = name.replace("_", " ")
    if best_epoch in epochs and math.isfinite(value := valid[epochs.index(best_epoch)]):
        panel.axvline(best_epoch, color=BEST, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        panel.plot([best_epoch], [value], "o", color=BEST, markersize=10, markerfacecolor="none", zorder=5,
                   markeredgewidth=1.6, label=f"best epoch: {best_epoch}")  # fmt: skip
        title += f"   {value:.4f} at the best epoch"
    panel.set_title(title)
    epoch_axis(panel, epochs)
    if name == "loss":
        log_if_wide(panel, train + valid)
    panel.legend(loc="best", fontsize=9)


def _rate_panel(panel: Axes, history: Sequence[dict[str, Any]]) -> None:
    epochs = series(history, "epoch")
    rates = [row.get("learning_rate") for row in history]
    rates = [rate if isinstance(rate, list) else [rate] for rate in rates]
    groups = max(map(len, rates))
    for group in range(groups):
        values = [rate[group] if group < len(rate) else rate[-1] for rate in rates]
        values = [math.nan if value is None else value for value in values]
        label = ("body, early", "body, late", "head")[group] if groups == 3 else f"layer group {group + 1}"
        curve(panel, epochs, values, color=PALETTE[group % len(PALETTE)], label=label)
    panel.set_title("learning rate   at the end of each epoch")
    epoch_axis(panel, epochs)
    lines = [float(value) for line in panel.lines for value in line.get_ydata() if value > 0]  # type: ignore
    if groups > 1:
        log_if_wide(panel, [value for value in lines if value > max(lines) * 1e-4])
        if panel.get_yscale() == "log":
            panel.set_ylim(bottom=max(min(lines) * 0.8, max(lines) * 1e-4))
        panel.legend(loc="best", fontsize=9)
    elif panel.get_yscale() == "linear":
        panel.set_ylim(bottom=0)


# --- confusion matrix -----------------------------------------------------------------------------------


def save_confusion_matrix(path: Path, matrix: np.ndarray, classes: Sequence[str], title: str = "") -> None:
    """matrix (K, K): images of a class (row) taken for another (column). Colour: share of the row."""
    import numpy as np

    num_classes = len(classes)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)  # (K, K)
    length = 28 if num_classes <= 40 else 18
    names = [shorten(name, length) for name in classes]
    margin = 0.9 + 0.075 * max(map(len, names))  # inches that the names take
    cell = (
        0.62 if num_classes <= 12 else 0.42 if num_classes <= 30 else 0.16 if num_classes <= 150 else 12 / num_classes
    )
    side = max(2.6, cell * num_classes)
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
        bar.outline.set_visible(False)
        bar.set_label("share of the true class")
        panel.spines[:].set_visible(False)
        panel.set_title(title)
        panel.set_xlabel("predicted")
        panel.set_ylabel("true")
        _class_ticks(panel, names)
        if num_classes <= 30:
            _write_counts(panel, matrix, share, 9 if num_classes <= 12 else 7)


def _class_ticks(panel: Axes, names: Sequence[str]) -> None:
    """Names at every class while they fit, every n-th number of the class beyond 150."""
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


# --- sheets of images -----------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """matplotlib's DejaVu Sans, found without importing matplotlib; else Pillow's own."""
    from PIL import ImageFont

    spec = importlib.util.find_spec("matplotlib")
    path = Path(spec.origin or "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if spec else None
    if path and path.is_file():
        return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def save_sheet(path: Path, images: np.ndarray, captions: Sequence[Sequence[str]], columns: int = 8) -> None:
    """images (N, H, W, 3) uint8 in rows of `columns`, each with its lines of text below."""
    from PIL import Image, ImageDraw

    count = len(images)
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    tile, gap, line, font = 128, 10, 15, _font(11)
    lines = max((len(caption) for caption in captions), default=0)
    height = tile + lines * line + 6
    size = (gap + columns * (tile + gap), gap + rows * (height + gap))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        left = gap + number % columns * (tile + gap)
        top = gap + number // columns * (height + gap)
        image = Image.fromarray(pixels)
        image = image.resize((tile, tile), Image.Resampling.NEAREST if image.width <= tile else Image.Resampling.BOX)
        sheet.paste(image, (left, top))
        pen.rectangle((left - 1, top - 1, left + tile, top + tile), outline="#d5d8dc")
        for row, text in enumerate(caption):
            colour = "#222222" if row == 0 else "#666666"
            pen.text((left, top + tile + 3 + row * line), _fit(text, tile, font), fill=colour, font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def _fit(text: str, width: int, font: Any) -> str:
    """`text` shortened until it is at most `width` pixels wide."""
    text, length = shorten(text, 60), min(len(text), 60)
    while length > 2 and font.getlength(text) > width:
        length -= 1
        text = shorten(text, length)
    return text


def to_pixels(images: Any, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(N, 3, H, W) normalised tensor on any device -> (N, H, W, 3) uint8."""
    import numpy as np

    array = images.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    array = array * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return (array * 255).round().clip(0, 255).astype(np.uint8)


def save_batch_sheet(path: Path, loader: Any, count: int = 32) -> None:
    """The first training images as the net sees them, with their (possibly mixed) classes."""
    batches = iter(loader.batches(0))
    images, labels, _, weights = next(batches)
    if hasattr(batches, "close"):
        batches.close()
    keep = (weights > 0).nonzero().flatten()[:count]
    images, labels = images[keep], labels[keep].cpu()
    captions = [caption(label, loader.classes) for label in labels]
    save_sheet(path, to_pixels(images, loader.pinned["mean"], loader.pinned["std"]), captions)


def caption(label: Any, classes: Sequence[str]) -> list[str]:
    """["cat"], or ["cat 0.70", "dog 0.30"] for a mixed label."""
    if label.ndim == 0:
        return [str(classes[int(label)])]
    values, numbers = label.topk(min(2, len(classes)))
    parts = [(classes[int(n)], float(v)) for v, n in zip(values, numbers, strict=True) if v > 0.005]
    return [parts[0][0]] if len(parts) == 1 else [f"{shorten(name, 14)} {value:.2f}" for name, value in parts]
