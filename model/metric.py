"""Metrics: what is reported, and what the best epoch is chosen by.

A metric is a function (logits (B, K), labels (B,) or soft (B, K)) -> one value per image (B,), whose mean
over the split is reported, or `Set(fn)` over all logits and labels of a split when no such mean exists (F1,
AUC, ...). To add one: write the function, add one line to METRICS. Or keep it in the experiment folder and
name it in params.json as "file.py:name".
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from utils import UserError, lookup, reference_name


class PerImage:
    """A function (logits (B, K), labels) -> (B,). `minimize`: lower is better."""

    per_image = True

    def __init__(self, fn: Callable[[Tensor, Tensor], Tensor], minimize: bool = False):
        self.fn, self.minimize = fn, minimize

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        values = self.fn(logits.float(), labels)
        if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
            given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise UserError(
                f"metrics: {_name(self.fn)} gave {given} for {len(logits)} images; one value per image is "
                "expected (a metric over a whole split is written Set(fn))"
            )
        return values.float()


class Set:
    """A function (logits (N, K), labels) of a whole split -> one number. `minimize`: lower is better."""

    per_image = False

    def __init__(self, fn: Callable[[Tensor, Tensor], Tensor | float], minimize: bool = False):
        self.fn, self.minimize = fn, minimize

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor | float:
        value = self.fn(logits.float(), labels)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise UserError(f"metrics: {_name(self.fn)} gave {tuple(value.shape)}; Set(fn) gives one number")
        return value


def _name(fn: Callable) -> str:
    return getattr(fn, "__name__", repr(fn))


def hard(labels: Tensor) -> Tensor:
    """(N,) or soft (N, K) labels -> (N,) class numbers."""
    return labels.argmax(dim=1) if labels.ndim == 2 else labels


# --- one value per image ----------------------------------------------------------------------------


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Plain cross-entropy in nats, whatever loss is being trained."""
    return F.cross_entropy(logits, labels, reduction="none")


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == hard(labels)).float()


def error(logits: Tensor, labels: Tensor) -> Tensor:
    return 1 - accuracy(logits, labels)


def top5_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the label is among the five largest logits; with five classes or fewer always 1."""
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
    return (top == hard(labels)[:, None]).any(dim=1).float()


# --- over a whole split -----------------------------------------------------------------------------


def _counts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each class that occurs, float64: its images, the images called it, the images rightly called it."""
    num_classes, labels, called = logits.shape[1], hard(labels), logits.argmax(dim=1)
    of_class = labels.bincount(minlength=num_classes)
    of_call = called.bincount(minlength=num_classes)
    right = labels[called == labels].bincount(minlength=num_classes)
    present = of_class > 0
    return of_class[present].double(), of_call[present].double(), right[present].double()


def f1(logits: Tensor, labels: Tensor) -> Tensor:
    """2PR / (P + R), mean over the classes that occur."""
    of_class, of_call, right = _counts(logits, labels)
    return (2 * right / (of_class + of_call)).mean()


def precision(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the classes that occur; 0 for one that is never predicted."""
    _, of_call, right = _counts(logits, labels)
    return (right / of_call.clamp(min=1)).mean()


def recall(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the classes that occur: the accuracy if each had as many images (balanced accuracy)."""
    of_class, _, right = _counts(logits, labels)
    return (right / of_class).mean()


def auc(logits: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve, one class against the rest: mean over the classes that occur.

    The Mann-Whitney form: (sum of the positives' ranks - P(P+1)/2) / (P * N); ties count half. NaN when only
    one class occurs.
    """
    labels, scores = hard(labels), logits.double().log_softmax(dim=1)  # (N,), (N, K)
    areas = []
    for number in labels.unique().tolist():
        positive = labels == number
        num_positive = positive.sum()
        num_negative = len(labels) - num_positive
        _, inverse, counts = scores[:, number].unique(return_inverse=True, return_counts=True)
        ranks = (counts.cumsum(0) - (counts - 1) / 2)[inverse]  # (N,), from 1; ties share their mean
        rank_sum = ranks.double()[positive].sum()
        areas.append((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))
    return torch.stack(areas).mean()


def ece(logits: Tensor, labels: Tensor, num_bins: int = 15) -> Tensor:
    """Expected calibration error: |accuracy - confidence| in bins of confidence, weighted by images.

    Guo et al., On Calibration of Modern Neural Networks (arXiv:1706.04599).
    """
    confidence, called = logits.double().softmax(dim=1).max(dim=1)  # (N,)
    gap = (called == hard(labels)).double() - confidence
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1  # (lower, upper], as in the paper
    return gap.new_zeros(num_bins).index_add(0, bins, gap).abs().sum() / len(gap)


METRICS: dict[str, PerImage | Set] = {
    "loss": PerImage(loss, minimize=True),
    "accuracy": PerImage(accuracy),
    "error": PerImage(error, minimize=True),
    "top5_accuracy": PerImage(top5_accuracy),
    "balanced_accuracy": Set(recall),
    "precision": Set(precision),
    "recall": Set(recall),
    "f1": Set(f1),
    "auc": Set(auc),
    "ece": Set(ece, minimize=True),
}


def make_metrics(names: list[str], folder: Path | None = None) -> dict[str, PerImage | Set]:
    """Name -> metric, "loss" first. "file.py:name" is called `name`; a bare function is per image."""
    metrics = {}
    for name in dict.fromkeys(["loss", *names]):
        short = reference_name(name)
        if short in metrics:
            raise UserError(f"metrics: {name!r}: two metrics are called {short!r}; rename one")
        metric = lookup(METRICS, name, "metrics", folder)
        if not isinstance(metric, PerImage | Set):
            if not callable(metric) or isinstance(metric, type):
                raise UserError(f"metrics: {name!r} is no function (logits, labels), PerImage(fn) or Set(fn)")
            metric = PerImage(metric)
        metrics[short] = metric
    return metrics
