"""Datasets made wrong on purpose, and loaders of small ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import params as parameters
from model.data_loader import Loader, fetch_dataloader
from params import Params


def make_params(**values: object) -> Params:
    return parameters.from_resolved({"batch_size": 8, "bs_test": 8, "seed": 3} | values, Path())


def loaders(
    data: Path,
    *splits: str,
    cache_dir: Path | None = None,
    pinned: Mapping[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
    **values: Any,
) -> dict[str, Loader]:
    return fetch_dataloader(
        list(splits),
        data,
        make_params(**values),
        cache_dir=cache_dir or data.parent / "cache",
        pinned=pinned,
        rank=rank,
        world=world,
    )


def loader(data: Path, split: str = "train", **values: Any) -> Loader:
    return loaders(data, split, **values)[split]


def batches(data: Loader, epoch: int = 0, start_step: int = 0) -> list[tuple[torch.Tensor, ...]]:
    return [tuple(part.clone() for part in batch) for batch in data.batches(epoch, start_step)]


def are_equal(one: list[tuple[torch.Tensor, ...]], other: list[tuple[torch.Tensor, ...]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


def noise(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8, smooth enough for JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
