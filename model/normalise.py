"""uint8 images -> what a net takes."""

from typing import Any

import torch
from torch import Tensor

from model.twins import fit_batch


class Normalise:
    """uint8 (B, S, S, 3) base or augmented images -> float32 (B, 3, im_sz, im_sz), channels last in memory."""

    def __init__(self, pinned: dict[str, Any], device: str):
        self.im_sz = pinned["im_sz"]
        # One row of pixels at a time, (im_sz * 3): many times faster than three numbers broadcast.
        self.mean = torch.tensor(pinned["mean"], device=device).mul(255).repeat(self.im_sz)
        self.scale = torch.tensor(pinned["std"], device=device).mul(255).reciprocal().repeat(self.im_sz)

    def empty(self, num: int) -> Tensor:
        """Room for `num` images, (num, im_sz, im_sz, 3)."""
        return torch.empty((num, self.im_sz, self.im_sz, 3), device=self.mean.device)

    def into(self, images: Tensor, out: Tensor) -> None:
        """uint8 (B, im_sz, im_sz, 3) -> `out`, a part of `empty`."""
        rows = out.view(len(images), self.im_sz, -1)  # (B, H, W * 3)
        rows.copy_(images.reshape(rows.shape)).sub_(self.mean).mul_(self.scale)

    def __call__(self, images: Tensor) -> Tensor:
        out = self.empty(len(images))
        self.into(fit_batch(images, self.im_sz), out)
        return out.permute(0, 3, 1, 2)
