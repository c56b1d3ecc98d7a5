"""Sums over the images of a split: kept on the device, divided by their count once, where a mean is wanted."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from engine.protocols import Metric


def measure_images(metrics: Mapping[str, Metric], logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Name -> (B,) values, of the metrics that have one for each image."""
    return {name: torch.as_tensor(metric(logits, labels)) for name, metric in metrics.items() if metric.per_image}


def sum_per_image(values: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    """(B,) values and (B,) weights -> weighted sums, and their weight under "count". Nothing leaves the device."""
    kind = torch.float32 if weights.device.type == "mps" else torch.float64
    weights = weights.to(kind)
    return {name: (value.to(kind) * weights).sum() for name, value in values.items()} | {"count": weights.sum()}


def add_sums(into: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    """Add each of `sums` to the entry of `into` that has its name."""
    for name, value in sums.items():
        into[name] = into[name] + value if name in into else value


def read_means(sums: dict[str, Tensor], all_sum: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Sums of all ranks divided by their count: the one place where values come to the host."""
    names = [name for name in sums if name != "count"]
    values = all_sum(torch.stack([sums[name] for name in (*names, "count")])).tolist()
    return {name: value / values[-1] for name, value in zip(names, values, strict=False)}
