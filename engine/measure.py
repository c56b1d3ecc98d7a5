"""A net over the images of a split, and what is measured of it: metrics, sums and means.

Validation (engine/loop.py) and evaluate.py share this. Sums stay on the device; they are divided by their count
once, where a mean is wanted.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.protocols import Loader, Metric

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Output:
    """What a net says of one batch of images."""

    images: Tensor  # (B, 3, H, W), as the net saw them
    logits: Tensor  # (B, K)
    labels: Tensor  # (B,) or (B, K)
    positions: Tensor  # (B,) on the CPU, in the order of the loader's paths
    weights: Tensor  # (B,), 0 for padding


def compute_outputs(
    forward: Callable[[Tensor], Tensor], loader: Loader, start_batch: int = 0, autocast: Autocast = nullcontext
) -> Iterator[Output]:
    """Run `forward`, images (B, 3, H, W) -> logits (B, K), over the batches of a split from `start_batch` on."""
    for images, labels, positions, weights in loader.batches(0, start_batch):
        with torch.no_grad(), autocast():
            logits = forward(images)
        yield Output(images, logits, labels, positions, weights)


# --- metrics ------------------------------------------------------------------------------------------


def measure_images(metrics: Mapping[str, Metric], logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Name -> (B,) values, of the metrics that have one value per image."""
    return {name: torch.as_tensor(metric(logits, labels)) for name, metric in metrics.items() if metric.per_image}


def measure_split(metrics: Mapping[str, Metric], logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Name -> number, of the metrics that need all logits (N, K) and labels of a split at once."""
    return {name: float(metric(logits, labels)) for name, metric in metrics.items() if not metric.per_image}


def has_split_metric(metrics: Mapping[str, Metric]) -> bool:
    """Whether one of the metrics needs all logits and labels of a split at once."""
    return not all(metric.per_image for metric in metrics.values())


# --- sums over images ---------------------------------------------------------------------------------


def sum_per_image(values: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    """(B,) values and (B,) weights -> weighted sums, and their weight under "count". Nothing leaves the device."""
    kind = torch.float32 if weights.device.type == "mps" else torch.float64
    weights = weights.to(kind)
    return {name: (value.to(kind) * weights).sum() for name, value in values.items()} | {"count": weights.sum()}


def add_sums(into: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    """Add each of `sums` to the entry of `into` that has its name."""
    for name, value in sums.items():
        into[name] = into[name] + value if name in into else value


def read_means(sums: Mapping[str, Tensor], all_sum: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Sums of all ranks divided by their count: the one place where values come to the host."""
    names = [name for name in sums if name != "count"]
    values = all_sum(torch.stack([sums[name] for name in (*names, "count")])).tolist()
    return {name: value / values[-1] for name, value in zip(names, values, strict=False)}
