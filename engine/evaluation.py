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

from engine.figures import save_confusion_matrix, save_sheet, shorten, to_pixels
from engine.report import count_looks
from include import RECORD, TENSORBOARD, TEST_LOOKS
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


def collect(net: Callable[[Tensor], Tensor], loader: Any, num_worst: int = 24) -> Collected:
    """Run `net` (images -> logits on the CPU) over every image of `loader` once."""
    import numpy as np

    logits, labels, positions = [], [], []
    worst_losses, worst, pixels = torch.empty(0).double(), torch.empty(0).long(), None
    for images, label, position, weights in loader.batches(0):
        kept = weights > 0
        images, label, position = images[kept], label[kept].cpu(), position[kept.cpu()]
        logit = net(images)  # (B, K)
        losses = torch.nn.functional.cross_entropy(logit, label, reduction="none")
        top = losses.topk(min(num_worst, len(losses))).indices
        shown = to_pixels(images[top.to(images.device)], loader.pinned["mean"], loader.pinned["std"])
        pixels = shown if pixels is None else np.concatenate([pixels, shown])
        worst = torch.cat([worst, position[top]])
        best_first = torch.cat([worst_losses, losses[top]]).topk(min(num_worst, len(worst)))
        worst_losses, worst, pixels = (
            best_first.values,
            worst[best_first.indices],
            pixels[best_first.indices.numpy()],
        )
        logits.append(logit)
        labels.append(label)
        positions.append(position)
    position = torch.cat(positions)
    order = position.argsort()
    rows = torch.searchsorted(position[order], worst)
    return Collected(torch.cat(logits)[order], torch.cat(labels)[order], position[order], rows, pixels)


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
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, predicted, labels=numbers, zero_division=0.0
    )
    lines = []
    for number, name in enumerate(classes):
        mistakes = matrix[number].copy()
        mistakes[number] = 0
        other = int(mistakes.argmax())
        taken_for = f"{classes[other]} ({mistakes[other]})" if mistakes[other] else ""
        values = (int(images[number]), *(float(ratio[number]) for ratio in (precision, recall, f1)))
        lines.append(dict(zip(HEADS, (name, *values, taken_for), strict=True)))
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
