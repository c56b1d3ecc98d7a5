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
    """The image alone."""
    return [(1.0, images)]


def flip(images: Tensor) -> Views:
    """The image and its mirror image."""
    return [(0.5, images), (0.5, images.flip(3))]


def flip_translate(images: Tensor) -> Views:
    """`flip` of three: the images (half of the weight), and moved by one pixel down and right, or up and left.

    What comes in at the border is reflected. Of Keller Jordan's airbench (arXiv:2404.00498).
    """
    height, width = images.shape[2:]
    padded = pad(images, (1, 1, 1, 1), "reflect")  # (B, 3, H + 2, W + 2)
    down_right = padded[:, :, :height, :width]
    up_left = padded[:, :, 2:, 2:]
    weighted = ((0.5, images), (0.25, down_right), (0.25, up_left))
    return [(share * weight, view) for share, moved in weighted for weight, view in flip(moved)]


TTA: dict[str, Callable[[Tensor], Views]] = {"none": none, "flip": flip, "flip_translate": flip_translate}


def average_views(forward: Callable[[Tensor], Tensor], images: Tensor, tta: str) -> Tensor:
    """The weighted mean of forward(view), (B, K), over the views of `images` (B, 3, H, W) that `tta` names."""
    views = lookup(TTA, tta, "tta")(images)
    if len(views) == 1:
        return forward(images)
    logits = [(weight, forward(view)) for weight, view in views]
    dtype = torch.promote_types(logits[0][1].dtype, torch.float32)  # sums of bfloat16 would be too coarse
    return torch.stack([weight * value.to(dtype) for weight, value in logits]).sum(dim=0)
