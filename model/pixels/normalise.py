"""uint8 images -> what a net takes."""

import math
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.pixels.batched import fit_batch

ALIGNMENT = 64  # bytes


class Room:
    """Memory for float batches of (num, im_sz, im_sz, 3). On the CPU it is used again once nobody holds a batch in it:
    to touch fresh memory takes longer than to normalise.
    """

    def __init__(self, im_sz: int, device: torch.device | str):
        self.im_sz, self.device = im_sz, torch.device(device)
        self.lent: list[tuple[np.ndarray, weakref.ref]] = []

    def empty(self, num: int) -> Tensor:
        shape = num, self.im_sz, self.im_sz, 3
        if self.device.type != "cpu":
            return torch.empty(shape, device=self.device)
        size = math.prod(shape)
        free = [raw for raw, user in self.lent if user() is None and len(raw) >= size + ALIGNMENT // 4]
        raw = free[0] if free else np.empty(size + ALIGNMENT // 4, np.float32)
        skip = -raw.__array_interface__["data"][0] % ALIGNMENT // 4  # as torch aligns its own memory
        array = raw[skip : skip + size]
        # The tensor's memory, which views and what autograd saved share, keeps `array` alive.
        others = [pair for pair in self.lent if pair[0] is not raw]
        self.lent = [*others[-1:], (raw, weakref.ref(array))]
        return torch.from_numpy(array).view(shape)


class Normalise:
    """uint8 (B, S, S, 3) base or augmented images -> float32 (B, 3, im_sz, im_sz), channels last in memory."""

    def __init__(self, pinned: dict[str, Any], device: str):
        self.im_sz = pinned["im_sz"]
        # One row of pixels at a time, (im_sz * 3): many times faster than three numbers broadcast.
        self.mean = torch.tensor(pinned["mean"], device=device).mul(255).repeat(self.im_sz)
        self.scale = torch.tensor(pinned["std"], device=device).mul(255).reciprocal().repeat(self.im_sz)

    def into(self, images: Tensor, out: Tensor) -> None:
        """uint8 (B, im_sz, im_sz, 3) -> `out`, memory for so many."""
        rows = out.view(len(images), self.im_sz, -1)  # (B, H, W * 3)
        rows.copy_(images.reshape(rows.shape)).sub_(self.mean).mul_(self.scale)

    def __call__(self, images: Tensor) -> Tensor:
        out = Room(self.im_sz, self.mean.device).empty(len(images))
        self.into(fit_batch(images, self.im_sz), out)
        return out.permute(0, 3, 1, 2)
