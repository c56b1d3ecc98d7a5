"""Metrics: (logits (N, K), labels (N,) or soft (N, K)) -> one value per image, or one per split.

Add one: a function and a line in METRICS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from utils import UserError, lookup


@dataclass(frozen=True)
class PerImage:
    """A metric with one value per image: fn(logits (N, K), labels) -> (N,). Its mean is reported."""

    fn: Callable[[Tensor, Tensor], Tensor]
    minimize: bool = False
    per_image = True

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.fn(logits.float(), labels)


@dataclass(frozen=True)
class Set:
    """A metric of a whole split: fn(all logits (N, K), hard labels (N,)) -> a number."""

    fn: Callable[[Tensor, Tensor], Tensor]
    minimize: bool = False
    per_image = False

    def __call__(self, logits: Tensor, labels: Tensor) -> float:
        return float(self.fn(logits.float(), hard(labels)))


def hard(labels: Tensor) -> Tensor:
    """(N,) class numbers of hard (N,) or soft (N, K) labels."""
    return labels if labels.ndim == 1 else labels.argmax(dim=1)


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Plain cross-entropy, in nats. -> (N,)"""
    return cross_entropy(logits, labels, reduction="none")


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == hard(labels)).float()


def top5_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the label is among the five likeliest classes. -> (N,)"""
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
    return (top == hard(labels)[:, None]).any(dim=1).float()


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """(K, K) counts: rows are labels, columns predictions."""
    num_classes = logits.shape[1]
    cells = labels * num_classes + logits.argmax(dim=1)
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).double()


def recall(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the classes that occur of the share of their images that is found."""
    matrix = confusion(logits, labels)
    present = matrix.sum(dim=1) > 0
    return (matrix.diag()[present] / matrix.sum(dim=1)[present]).mean()


def precision(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the classes that occur of the share of their predictions that is right; 0 when never predicted."""
    matrix = confusion(logits, labels)
    present = matrix.sum(dim=1) > 0
    return (matrix.diag() / matrix.sum(dim=0).clamp(min=1))[present].mean()


def f1(logits: Tensor, labels: Tensor) -> Tensor:
    """Macro F1: the mean over the classes that occur of 2 TP / (2 TP + FP + FN)."""
    matrix = confusion(logits, labels)
    present = matrix.sum(dim=1) > 0
    return (2 * matrix.diag() / (matrix.sum(dim=0) + matrix.sum(dim=1)).clamp(min=1))[present].mean()


def auc(logits: Tensor, labels: Tensor) -> Tensor:
    """Macro one-against-rest area under the ROC curve, from ranks with ties shared (Mann-Whitney). NaN with one class."""
    scores = logits.double().softmax(dim=1)
    areas = []
    for number in range(logits.shape[1]):
        positive = labels == number
        num_positive, num_negative = int(positive.sum()), int((~positive).sum())
        if num_positive and num_negative:
            _, group, count = scores[:, number].unique(return_inverse=True, return_counts=True)
            ranks = (count.cumsum(0) - (count - 1) / 2)[group]  # mean rank of each tie, from 1
            areas.append((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))
    return torch.stack(areas).mean() if areas else torch.tensor(float("nan"))


def ece(logits: Tensor, labels: Tensor, num_bins: int = 15) -> Tensor:
    """Expected calibration error over equal-width bins of the top probability (Guo et al., arXiv:1706.04599)."""
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    right = (predicted == labels).double()
    which = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gap = torch.zeros(num_bins, dtype=torch.float64, device=logits.device).index_add_(0, which, right - confidence)
    return gap.abs().sum() / len(labels)


METRICS: dict[str, PerImage | Set] = {
    "loss": PerImage(loss, minimize=True),
    "accuracy": PerImage(accuracy),
    "top5_accuracy": PerImage(top5_accuracy),
    "f1": Set(f1),
    "precision": Set(precision),
    "recall": Set(recall),
    "balanced_accuracy": Set(recall),
    "auc": Set(auc),
    "ece": Set(ece, minimize=True),
}


def make_metrics(names: list[str], folder: Path | None = None) -> dict[str, Any]:
    """The metrics by name, the loss first. "file.py:Name" in `folder` may name a function or a PerImage/Set."""
    metrics: dict[str, Any] = {"loss": METRICS["loss"]}
    for name in names:
        metric = lookup(METRICS, name, "metrics", folder)
        if not callable(metric):
            raise UserError(f"metrics: {name!r} is no function (logits, labels) -> one value per image")
        metrics[name.rpartition(":")[2]] = metric if isinstance(metric, PerImage | Set) else PerImage(metric)
    return metrics
