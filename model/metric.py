"""Metrics: what is reported, and what the best epoch is chosen by.

A metric is a function of logits (B, K) and labels (B,), or soft labels (B, K). `PerImage(function)` gives one value
per image (B,), whose mean over the split is reported. `Set(function)` gives one number for all logits and labels of a
split, for what is no such mean (F1, AUC, ...).
To add one: write the function and add one line to METRICS. Or keep it in the experiment folder and name it in
params.json as "file.py:name".
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from utils import UserError, lookup, reference_name


class PerImage:
    """A metric with one value per image: function(logits (B, K), labels) -> (B,). `minimize`: lower is better."""

    per_image = True

    def __init__(self, function: Callable[[Tensor, Tensor], object], minimize: bool = False):
        self.function = function  # what it returns is checked
        self.minimize = minimize

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        values = self.function(logits.float(), labels)
        if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
            given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise UserError(
                f"metrics: {_name(self.function)} gave {given} for {len(logits)} images; one value per image is "
                "expected (a metric over a whole split is written Set(function))"
            )
        return values.float()


class Set:
    """A metric of a whole split: function(logits (N, K), labels) -> one number. `minimize`: lower is better."""

    per_image = False

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor | float], minimize: bool = False):
        self.function = function
        self.minimize = minimize

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor | float:
        value = self.function(logits.float(), labels)
        if isinstance(value, Tensor) and value.numel() != 1:
            shape = tuple(value.shape)
            raise UserError(f"metrics: {_name(self.function)} gave shape {shape}; Set(function) gives one number")
        return value


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__name__", repr(function))


def hard(labels: Tensor) -> Tensor:
    """(N,) or soft (N, K) labels -> (N,) class numbers."""
    return labels.argmax(dim=1) if labels.ndim == 2 else labels


# --- one value per image ----------------------------------------------------------------------------


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Plain cross-entropy in nats, whatever loss is being trained."""
    return F.cross_entropy(logits, labels, reduction="none")


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the largest logit is that of the label, else 0."""
    return (logits.argmax(dim=1) == hard(labels)).float()


def error(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - accuracy."""
    return 1 - accuracy(logits, labels)


def top5_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the label is among the five largest logits; with five classes or fewer always 1."""
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
    return (top == hard(labels)[:, None]).any(dim=1).float()


# --- over a whole split -----------------------------------------------------------------------------


def _count_by_class(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of images: of the class, predicted as it, rightly predicted as it. float64, classes that occur alone."""
    num_classes = logits.shape[1]
    labels = hard(labels)  # (N,)
    predicted = logits.argmax(dim=1)  # (N,)
    num_actual = labels.bincount(minlength=num_classes)  # (K,)
    num_predicted = predicted.bincount(minlength=num_classes)
    num_right = labels[predicted == labels].bincount(minlength=num_classes)
    present = num_actual > 0
    return num_actual[present].double(), num_predicted[present].double(), num_right[present].double()


def f1(logits: Tensor, labels: Tensor) -> Tensor:
    """2 * precision * recall / (precision + recall) of a class; mean over the classes that occur (macro F1)."""
    num_actual, num_predicted, num_right = _count_by_class(logits, labels)
    return (2 * num_right / (num_actual + num_predicted)).mean()


def precision(logits: Tensor, labels: Tensor) -> Tensor:
    """Rightly predicted / predicted; mean over the classes that occur, 0 for one that is never predicted."""
    _, num_predicted, num_right = _count_by_class(logits, labels)
    return (num_right / num_predicted.clamp(min=1)).mean()


def recall(logits: Tensor, labels: Tensor) -> Tensor:
    """Rightly predicted / images of the class; mean over the classes that occur (balanced accuracy)."""
    num_actual, _, num_right = _count_by_class(logits, labels)
    return (num_right / num_actual).mean()


def auc(logits: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve, one class against the rest: mean over the classes that occur.

    The Mann-Whitney form: (sum of the positives' ranks - P(P+1)/2) / (P * N); ties count half. NaN when only
    one class occurs.
    """
    labels = hard(labels)  # (N,)
    scores = logits.double().log_softmax(dim=1)  # (N, K)
    areas = []
    for number in labels.unique().tolist():
        # One class against the rest.
        positive = labels == number  # (N,)
        num_positive = positive.sum()
        num_negative = len(labels) - num_positive
        # Ranks of the scores, from 1; equal scores share the mean of their ranks.
        _, inverse, counts = scores[:, number].unique(return_inverse=True, return_counts=True)
        ranks = (counts.cumsum(0) - (counts - 1) / 2)[inverse]  # (N,)
        rank_sum = ranks.double()[positive].sum()
        areas.append((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))
    return torch.stack(areas).mean()


def ece(logits: Tensor, labels: Tensor, num_bins: int = 15) -> Tensor:
    """Expected calibration error: |accuracy - confidence| in bins of confidence, weighted by images.

    Guo et al., On Calibration of Modern Neural Networks (arXiv:1706.04599).
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)  # (N,)
    gap = (predicted == hard(labels)).double() - confidence
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1  # (N,); (lower, upper], as in the paper
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
    """Name -> metric, "loss" first. "file.py:name" is reported as `name`; a bare function there is per image."""
    metrics = {}
    for name in dict.fromkeys(["loss", *names]):
        short = reference_name(name)
        if short in metrics:
            raise UserError(f"metrics: {name!r}: two metrics are called {short!r}; rename one")
        metric = lookup(METRICS, name, "metrics", folder)
        if not isinstance(metric, PerImage | Set):
            if not callable(metric) or isinstance(metric, type):
                raise UserError(f"metrics: {name!r} is no function (logits, labels), PerImage(...) or Set(...)")
            metric = PerImage(metric)
        metrics[short] = metric
    return metrics
