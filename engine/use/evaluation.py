"""One look at a split with trained weights: logits -> metrics, tables and pictures."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from include import RECORD, TENSORBOARD, TEST_LOOKS
from report.figures import save_confusion_matrix, save_sheet, shorten, to_pixels
from report.rows import count_looks
from utils import write_atomic

if TYPE_CHECKING:
    import numpy as np

Line = dict[str, Any]  # column -> value
HEADS = ("class", "images", "precision", "recall", "f1", "most often taken for")


@dataclass(frozen=True)
class Collected:
    """All logits of a split in the order of its files, and the images with the largest losses."""

    logits: Tensor  # (N, K) float64
    labels: Tensor  # (N,)
    positions: Tensor  # (N,) positions in loader.paths
    worst: Tensor  # (M,) rows of the above, largest loss first
    pixels: np.ndarray  # (M, H, W, 3) uint8

    @property
    def predicted(self) -> Tensor:
        return self.logits.argmax(dim=1)

    @property
    def losses(self) -> Tensor:
        return torch.nn.functional.cross_entropy(self.logits, self.labels, reduction="none")


class Worst:
    """The `size` images with the largest losses so far."""

    def __init__(self, size: int):
        self.size = size
        self.entries: list[tuple[float, int, np.ndarray]] = []  # (loss, position, pixels)

    def add(self, losses: Tensor, positions: Tensor, images: Tensor, pinned: dict[str, Any]) -> None:
        top = losses.topk(min(self.size, len(losses))).indices
        pixels = to_pixels(images[top.to(images.device)], pinned["mean"], pinned["std"])
        self.entries += zip(losses[top].tolist(), positions[top].tolist(), pixels, strict=True)
        self.entries = sorted(self.entries, key=lambda entry: (-entry[0], entry[1]))[: self.size]


def collect(net: Callable[[Tensor], Tensor], loader: Any, num_worst: int = 24) -> Collected:
    """Run `net` (images -> logits on the CPU) over every image of `loader` once."""
    import numpy as np

    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    worst = Worst(num_worst)
    for images, labels, positions, weights in loader.batches(0):
        counts = weights > 0
        images, labels, positions = images[counts], labels[counts].cpu(), positions[counts.cpu()]
        logits = net(images)  # (B, K)
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        worst.add(losses, positions, images, loader.pinned)
        parts.append((logits, labels, positions))
    logits, labels, positions = (torch.cat(part) for part in zip(*parts, strict=True))
    order = positions.argsort()
    _, worst_positions, pixels = zip(*worst.entries, strict=True)
    rows = torch.searchsorted(positions[order], torch.tensor(worst_positions))
    return Collected(logits[order], labels[order], positions[order], rows, np.stack(pixels))


def measure(metrics: dict[str, Any], logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Every metric over all images at once. None where a metric is not defined."""
    values = {}
    for name, metric in metrics.items():
        value = metric(logits, labels)
        value = float(value.double().mean()) if metric.per_image else float(value)
        values[name] = value if math.isfinite(value) else None
    return values


def record_look(folder: Path, look: dict[str, Any]) -> int:
    """Append a line to record/test_looks.jsonl. Returns the number of looks so far, this one included."""
    path = folder / TEST_LOOKS
    (folder / RECORD).mkdir(exist_ok=True)
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with open(path, "a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(look, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return count_looks(path)


# --- tables ---------------------------------------------------------------------------------------------


def per_class(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> tuple[np.ndarray, list[Line]]:
    """(confusion matrix (K, K): true x predicted; one line per class). 0 where a ratio is not defined."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    numbers = range(len(classes))
    matrix = confusion_matrix(labels, predicted, labels=numbers)
    ratios = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0)  # type: ignore
    columns: list[Any] = [column.tolist() for column in ratios]  # type: ignore
    lines = []
    for number, name in enumerate(classes):
        mistakes = matrix[number].copy()
        mistakes[number] = 0
        other = int(mistakes.argmax())
        taken_for = f"{classes[other]} ({mistakes[other]})" if mistakes[other] else ""
        precision, recall, f1, images = (column[number] for column in columns)
        lines.append(dict(zip(HEADS, (name, images, precision, recall, f1, taken_for), strict=True)))
    return matrix, lines


def per_class_markdown(lines: Sequence[Line], at_most: int | None = None) -> str:
    """The table with its means; of many classes only the `at_most` with the lowest F1."""
    from tabulate import tabulate

    few = at_most is not None and len(lines) > at_most
    shown = sorted(lines, key=lambda line: line["f1"])[:at_most] if few else list(lines)
    seen = [line for line in lines if line["images"]]
    mean: Line = {"class": "mean over the classes", "images": sum(line["images"] for line in seen)}
    mean |= {key: sum(line[key] for line in seen) / max(len(seen), 1) for key in ("precision", "recall", "f1")}
    table = [[_cell(line.get(head, "")) for head in HEADS] for line in [*shown, mean]]
    align = ("left", "right", "right", "right", "right", "left")
    text = tabulate(table, HEADS, tablefmt="github", disable_numparse=True, colalign=align)
    return text + (f"\n\nThe {at_most} classes with the lowest F1, of {len(lines)}." if few else "")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return shorten(value, 40).replace("|", "\\|") if value != "" else ""


def write_csv(path: Path, heads: Sequence[str], lines: Sequence[Sequence[Any]] | Iterator[Sequence[Any]]) -> None:
    """A CSV file; file names that are not UTF-8 keep their bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(lines)
    write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))


# --- what evaluate.py leaves ----------------------------------------------------------------------------


def write_evaluation(out: Path, found: Collected, loader: Any, title: str) -> list[Line]:
    """per_class, confusion_matrix, predictions and top_losses under `out`. Returns the per-class lines."""
    out.mkdir(parents=True, exist_ok=True)
    classes = loader.classes
    matrix, lines = per_class(found.labels, found.predicted, classes)
    write_csv(out / "per_class.csv", HEADS, [[line[head] for head in HEADS] for line in lines])
    write_atomic(out / "per_class.md", per_class_markdown(lines) + "\n")
    table = [[name, *row] for name, row in zip(classes, matrix.tolist(), strict=True)]
    write_csv(out / "confusion_matrix.csv", ["true / predicted", *classes], table)
    save_confusion_matrix(out / "confusion_matrix.png", matrix, classes, title)
    write_csv(out / "predictions.csv", ["path", "label", "predicted", *[f"prob_{name}" for name in classes]],
              _predictions(found, loader))  # fmt: skip
    save_sheet(out / "top_losses.png", found.pixels, _top_captions(found, classes))
    return lines


def _predictions(found: Collected, loader: Any) -> Iterator[list[str]]:
    rows = zip(found.positions, found.labels, found.predicted, found.logits.softmax(dim=1).tolist(), strict=True)
    for position, label, predicted, probabilities in rows:
        names = [loader.paths[position], loader.classes[label], loader.classes[predicted]]
        yield [*names, *(f"{value:.9g}" for value in probabilities)]


def _top_captions(found: Collected, classes: Sequence[str]) -> list[list[str]]:
    """Three lines for each: the class, what it was taken for, how sure."""
    probabilities, losses = found.logits.softmax(dim=1), found.losses
    captions = []
    for row in found.worst.tolist():
        label, predicted = int(found.labels[row]), int(found.predicted[row])
        verdict = "recognised" if label == predicted else f"taken for {classes[predicted]}"
        sure = f"at {float(probabilities[row, predicted]):.2f}, loss {float(losses[row]):.2f}"
        captions.append([classes[label], verdict, sure])
    return captions


def show_in_tensorboard(folder: Path, out: Path, split: str, step: int) -> None:
    """The two pictures under `out`, as events of the experiment."""
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / TENSORBOARD), filename_suffix=f".{split}") as writer:
        for name in ("confusion_matrix", "top_losses"):
            with Image.open(out / f"{name}.png") as image:
                writer.add_image(f"{split}/{name}", np.asarray(image.convert("RGB")), step, dataformats="HWC")
