"""Progressive resizing: smaller training images in the first epochs (terms and shape of MosaicML's Composer).

The size of an epoch is a function of its number. Evaluation is always at full size.
"""

import math

from torch import Tensor
from torch.nn.functional import interpolate

from params import Params


def size_at(params: Params, im_sz: int, epoch: int) -> int:
    """Side in pixels of the training images in an epoch (from 0): a multiple of size_increment, or `im_sz` itself.

    `initial_scale` of it for `delay_fraction` of the epochs, then growing linearly to full size, which the last
    `finetune_fraction` of the epochs have.
    """
    how = params.progressive
    if how is None:
        return im_sz
    elapsed = epoch / params.num_epochs  # fraction of the run
    growing = 1 - how.delay_fraction - how.finetune_fraction
    if elapsed >= 1 - how.finetune_fraction:
        return im_sz
    share = (elapsed - how.delay_fraction) / growing if elapsed > how.delay_fraction else 0.0
    scale = how.initial_scale + share * (1 - how.initial_scale)
    side = how.size_increment * round(scale * im_sz / how.size_increment)
    return min(im_sz, max(how.size_increment, side))


def list_training_sizes(params: Params, im_sz: int) -> list[int]:
    """The sides that the training images will have, and im_sz, smallest first: what a net is tried with."""
    return sorted({size_at(params, im_sz, epoch) for epoch in range(math.ceil(params.num_epochs))} | {im_sz})


def describe_training_sizes(params: Params, im_sz: int) -> str:
    """ "progressive: 16 px to 32 px by epoch 6"; "" when all epochs have the same size."""
    smallest, *others = list_training_sizes(params, im_sz)
    if not others:
        return ""
    epochs = range(math.ceil(params.num_epochs) + 1)
    full = next((epoch for epoch in epochs if size_at(params, im_sz, epoch) == im_sz), epochs[-1])
    return f"progressive: {smallest} px to {im_sz} px by epoch {full}"


def resize(images: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, side, side), bilinear, antialiased; channels last stay last."""
    if images.shape[2] == side:
        return images
    return interpolate(images, (side, side), mode="bilinear", antialias=True)
