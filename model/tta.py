"""Test-time augmentation: the mean of the logits for several views of an image.

To add one: one function and one line in TTA.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from utils import lookup

Views = list[tuple[float, Tensor]]  # (weight, images (B, 3, H, W)); the weights' sum is 1


def none(images: Tensor) -> Views:
    return [(1.0, images)]


def flip(images: Tensor) -> Views:
    """The image and its mirror image."""
    return [(0.5, images), (0.5, images.flip(3))]


def flip_translate(images: Tensor) -> Views:
    """Half of `flip`, and a quarter each of it one pixel up and left, and down and right (arXiv:2404.00498)."""
    height, width = images.shape[2:]
    padded = pad(images, (1, 1, 1, 1), "reflect")
    up, down = padded[:, :, :height, :width], padded[:, :, 2:, 2:]
    weighted = ((0.5, images), (0.25, up), (0.25, down))
    return [(share * weight, view) for share, moved in weighted for weight, view in flip(moved)]


TTA: dict[str, Callable[[Tensor], Views]] = {"none": none, "flip": flip, "flip_translate": flip_translate}


def average_views(forward: Callable[[Tensor], Tensor], images: Tensor, tta: str) -> Tensor:
    """The weighted mean of forward(view), (B, K), over the views of `images` (B, 3, H, W) that `tta` names."""
    views = lookup(TTA, tta, "tta")(images)
    if len(views) == 1:
        return forward(images)
    logits = [(weight, forward(view)) for weight, view in views]
    kind = torch.promote_types(logits[0][1].dtype, torch.float32)
    return torch.stack([weight * value.to(kind) for weight, value in logits]).sum(dim=0)
