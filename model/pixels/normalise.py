"""uint8 images -> the float32 batches that a net takes."""

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.pixels.batched import fit_batch

ALIGNMENT = 64  # bytes; as torch aligns its own memory on the CPU


class BatchBuffer:
    """Memory for float32 batches (B, im_sz, im_sz, 3). On the CPU that of an earlier batch, once nobody holds it.

    The first touch of fresh memory takes longer than normalising into it.
    """

    def __init__(self, im_sz: int, device: torch.device | str):
        self.im_sz = im_sz
        self.device = torch.device(device)
        self.lent: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []  # (memory, the array that was lent out of it)

    def take(self, num_images: int) -> Tensor:
        """(num_images, im_sz, im_sz, 3), not initialised."""
        shape = (num_images, self.im_sz, self.im_sz, 3)
        if self.device.type != "cpu":
            return torch.empty(shape, device=self.device)
        # Memory that is free and large enough, or fresh memory.
        size = math.prod(shape)
        needed = size + ALIGNMENT // 4
        free = [memory for memory, user in self.lent if user() is None and len(memory) >= needed]
        memory = free[0] if free else np.empty(needed, np.float32)
        # Its first aligned address.
        skip = -memory.__array_interface__["data"][0] % ALIGNMENT // 4
        array = memory[skip : skip + size]
        # `array` lives as long as the tensor's storage, which views of it and autograd share.
        others = [pair for pair in self.lent if pair[0] is not memory]
        self.lent = [*others[-1:], (memory, weakref.ref(array))]
        return torch.from_numpy(array).view(shape)


class Normalise:
    """uint8 images (B, S, S, 3) -> (pixel / 255 - mean) / std, float32 (B, 3, im_sz, im_sz), channels last in memory.

    `mean` and `std`: one number per channel, of pixels in [0, 1].
    """

    def __init__(self, im_sz: int, mean: Sequence[float], std: Sequence[float], device: str):
        self.im_sz = im_sz
        # One row of pixels at a time, (im_sz * 3,): many times faster than three numbers broadcast.
        self.mean = torch.tensor(mean, device=device).mul(255).repeat(im_sz)
        self.scale = torch.tensor(std, device=device).mul(255).reciprocal().repeat(im_sz)

    def write(self, images: Tensor, out: Tensor) -> None:
        """uint8 (B, im_sz, im_sz, 3) -> `out`, float32 of that shape."""
        rows = out.view(len(images), self.im_sz, -1)  # (B, H, W * 3)
        rows.copy_(images.reshape(rows.shape)).sub_(self.mean).mul_(self.scale)

    def __call__(self, images: Tensor) -> Tensor:
        out = BatchBuffer(self.im_sz, self.mean.device).take(len(images))
        self.write(fit_batch(images, self.im_sz), out)
        return out.permute(0, 3, 1, 2)
