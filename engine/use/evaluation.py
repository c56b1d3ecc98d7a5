"""One look at a split with trained weights: logits -> metrics, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from engine.measure import compute_outputs, measure_images, measure_split
from engine.protocols import Loader, Metric, Names
from folder.csv_text import format_csv
from include import EVALUATION, TENSORBOARD
from report.figures import save_confusion_matrix, shorten
from report.image_sheets import save_sheet, to_pixels
from utils import printable, write_atomic

CLASS_HEADS = ("class", "images", "precision", "recall", "f1", "most often taken for")


@dataclass(frozen=True)
class SplitOutput:
    """All logits of a split in the order of its files, and the images with the largest losses."""

    logits: Tensor  # (N, K) float64
    labels: Tensor  # (N,)
    positions: Tensor  # (N,) positions in loader.paths
    worst: Tensor  # (M,) rows of the above, largest loss first
    pixels: np.ndarray  # (M, H, W, 3) uint8, of these rows

    @property
    def predicted(self) -> Tensor:
        return self.logits.argmax(dim=1)

    @property
    def losses(self) -> Tensor:
        return cross_entropy(self.logits, self.labels, reduction="none")


@dataclass(frozen=True)
class Computed:
    """The outputs of a net over a split, and what tables and records say about the split."""

    outputs: SplitOutput
    classes: Sequence[str]
    paths: Names  # of the images below the dataset folder, by position
    num_images: int
    fingerprint: str  # the identity of the split
    description: str  # of weights and images, for people

    @classmethod
    def of(cls, outputs: SplitOutput, loader: Loader, description: str) -> Computed:
        return cls(outputs, loader.classes, loader.paths, loader.num_images, loader.fingerprint, description)


class LargestLosses:
    """The `size` images with the largest losses so far; of equal losses the earlier file."""

    def __init__(self, size: int, loader: Loader):
        self.size = size
        self.mean = loader.pinned["mean"]
        self.std = loader.pinned["std"]
        self.entries: list[tuple[float, int, np.ndarray]] = []  # (loss, position, pixels)

    def add(self, losses: Tensor, positions: Tensor, images: Tensor) -> None:
        top = losses.topk(min(self.size, len(losses))).indices
        pixels = to_pixels(images[top.to(images.device)], self.mean, self.std)
        self.entries += zip(losses[top].tolist(), positions[top].tolist(), pixels, strict=True)
        self.entries = sorted(self.entries, key=lambda entry: (-entry[0], entry[1]))[: self.size]


def collect_outputs(net: Callable[[Tensor], Tensor], loader: Loader, num_worst: int = 24) -> SplitOutput:
    """Run `net` (images -> logits on the CPU) over every image of `loader` once."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    largest = LargestLosses(num_worst, loader)
    for output in compute_outputs(net, loader):
        # Leave the padding out.
        counts = output.weights > 0
        kept = counts.cpu()
        logits = output.logits[kept]
        labels = output.labels[counts].cpu()
        positions = output.positions[kept]
        # Keep the pixels of the images with the largest losses.
        losses = cross_entropy(logits, labels, reduction="none")
        largest.add(losses, positions, output.images[counts])
        parts.append((logits, labels, positions))
    # Bring everything into the order of the files.
    logits, labels, positions = (torch.cat(part) for part in zip(*parts, strict=True))
    order = positions.argsort()
    worst_positions = torch.tensor([position for _, position, _ in largest.entries])
    worst = torch.searchsorted(positions[order], worst_positions)
    pixels = np.stack([pixels for _, _, pixels in largest.entries])
    return SplitOutput(logits[order], labels[order], positions[order], worst, pixels)


def measure(metrics: Mapping[str, Metric], logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Every metric over all images at once, in the order of `metrics`. None where a metric is not defined."""
    values = {
        name: float(of_images.double().mean()) for name, of_images in measure_images(metrics, logits, labels).items()
    }
    values |= measure_split(metrics, logits, labels)
    return {name: values[name] if math.isfinite(values[name]) else None for name in metrics}


# --- tables ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassScores:
    """One line of per_class.csv, its fields in the order of CLASS_HEADS."""

    name: str
    images: int
    precision: float
    recall: float
    f1: float
    taken_for: str  # the class it was most often mistaken for, and how often


def score_classes(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> tuple[np.ndarray, list[ClassScores]]:
    """(confusion matrix (K, K): true x predicted; the scores of each class). 0 where a ratio is not defined."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    numbers = range(len(classes))
    matrix = confusion_matrix(labels, predicted, labels=numbers)
    columns = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0)  # pyright: ignore[reportArgumentType]  (its stubs want a str)
    precision, recall, f1, images = (np.asarray(column).tolist() for column in columns)
    lines = []
    for number, name in enumerate(classes):
        mistakes = matrix[number].copy()
        mistakes[number] = 0
        other = int(mistakes.argmax())
        taken_for = f"{classes[other]} ({mistakes[other]})" if mistakes[other] else ""
        lines.append(ClassScores(name, images[number], precision[number], recall[number], f1[number], taken_for))
    return matrix, lines


def class_table(lines: Sequence[ClassScores], at_most: int | None = None) -> str:
    """The scores of each class and their means, as Markdown; of many classes the `at_most` with the lowest F1."""
    from tabulate import tabulate

    is_cut = at_most is not None and len(lines) > at_most
    shown = sorted(lines, key=lambda line: line.f1)[:at_most] if is_cut else list(lines)
    table = [[_cell(value) for value in astuple(line)] for line in [*shown, mean_scores(lines)]]
    align = ("left", "right", "right", "right", "right", "left")
    text = tabulate(table, CLASS_HEADS, tablefmt="github", disable_numparse=True, colalign=align)
    return text + (f"\n\nThe {at_most} classes with the lowest F1, of {len(lines)}." if is_cut else "")


def mean_scores(lines: Sequence[ClassScores]) -> ClassScores:
    """The mean over the classes that have images."""
    present = [line for line in lines if line.images]

    def mean(values: Iterable[float]) -> float:
        return sum(values) / max(len(present), 1)

    return ClassScores(
        name="mean over the classes",
        images=sum(line.images for line in present),
        precision=mean(line.precision for line in present),
        recall=mean(line.recall for line in present),
        f1=mean(line.f1 for line in present),
        taken_for="",
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return printable(shorten(str(value), 40)).replace("|", "\\|") if value != "" else ""


def write_csv(path: Path, heads: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """A CSV file; file names that are not UTF-8 keep their bytes."""
    write_atomic(path, format_csv([heads, *lines]).encode("utf-8", "surrogateescape"))


# --- what evaluate.py leaves ----------------------------------------------------------------------------


def output_paths(folder: Path, out: Path | None, split: str, weights: str) -> dict[str, Path]:
    """metrics_test_best.json and evaluation/; for other splits and weights, names that say which."""
    suffix = ("" if split == "test" else f"_{split}") + ("" if weights == "best" else f"_{weights}")
    parent = out or folder
    return {
        "metrics": parent / f"metrics_{split}_{weights}.json",
        "evaluation": parent / f"{EVALUATION}{suffix}",
    }


def write_evaluation(out: Path, computed: Computed, title: str) -> list[ClassScores]:
    """per_class, confusion_matrix, predictions and top_losses under `out`. Returns the scores of each class."""
    out.mkdir(parents=True, exist_ok=True)
    outputs = computed.outputs
    classes = computed.classes
    matrix, lines = score_classes(outputs.labels, outputs.predicted, classes)
    write_csv(out / "per_class.csv", CLASS_HEADS, map(astuple, lines))
    write_atomic(out / "per_class.md", class_table(lines) + "\n")
    table = [[name, *row] for name, row in zip(classes, matrix.tolist(), strict=True)]
    write_csv(out / "confusion_matrix.csv", ["true / predicted", *classes], table)
    save_confusion_matrix(out / "confusion_matrix.png", matrix, classes, title)
    heads = ["path", "label", "predicted", *[f"prob_{name}" for name in classes]]
    write_csv(out / "predictions.csv", heads, _prediction_rows(computed))
    save_sheet(out / "top_losses.png", outputs.pixels, _top_captions(outputs, classes))
    return lines


def _prediction_rows(computed: Computed) -> Iterable[list[str]]:
    outputs = computed.outputs
    classes = computed.classes
    probabilities = outputs.logits.softmax(dim=1).tolist()
    columns = (outputs.positions.tolist(), outputs.labels.tolist(), outputs.predicted.tolist(), probabilities)
    for position, label, predicted, values in zip(*columns, strict=True):
        names = [computed.paths[position], classes[label], classes[predicted]]
        yield [*names, *(f"{value:.9g}" for value in values)]


def _top_captions(outputs: SplitOutput, classes: Sequence[str]) -> list[list[str]]:
    """Three lines for each image: its class, the predicted class, its probability and the loss."""
    probabilities = outputs.logits.softmax(dim=1)
    losses = outputs.losses
    captions = []
    for row in outputs.worst.tolist():
        label = int(outputs.labels[row])
        predicted = int(outputs.predicted[row])
        verdict = "recognised" if label == predicted else f"taken for {classes[predicted]}"
        sure = f"at {float(probabilities[row, predicted]):.2f}, loss {float(losses[row]):.2f}"
        captions.append([classes[label], verdict, sure])
    return captions


def show_in_tensorboard(folder: Path, out: Path, split: str, step: int) -> None:
    """Add the two pictures under `out` to the TensorBoard events of the experiment."""
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / TENSORBOARD), filename_suffix=f".{split}") as writer:
        for name in ("confusion_matrix", "top_losses"):
            with Image.open(out / f"{name}.png") as image:
                writer.add_image(f"{split}/{name}", np.asarray(image.convert("RGB")), step, dataformats="HWC")
