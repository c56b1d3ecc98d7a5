"""Augmentation: what happens to the pixels between the base image and the net.

A pipeline is a list of albumentations transforms, as data. When each of them has a batched form (model/pixels/), the
whole batch is augmented at once on the device; otherwise albumentations does it image by image, in worker processes.
Every draw is a function of its counters: seed, epoch and image.
To add a preset: one function and one line in PRESETS.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from include import VERSION
from model.pixels.batched import Arguments, find_batched, fit_batch, uniform
from model.pixels.fused import FusedGather, FusedResizedCrop, fuse
from model.pixels.per_image import PerImagePipeline
from params import Params
from utils import UserError, key64, nearest

Transforms = list[Arguments]  # {"name": ..., arguments by albumentations' names}
FLIP = "HorizontalFlip"


# --- presets ------------------------------------------------------------------------------------------


def none(im_sz: int, base: int) -> Transforms:
    """The centre."""
    return [{"name": "CenterCrop", "height": im_sz, "width": im_sz}] if base != im_sz else []


def crop(im_sz: int, base: int) -> Transforms:
    """Up to 64 px: padded by an eighth (4 px at 32) and cut at random. Above: 35 to 100 % of the area."""
    if base > im_sz:
        return [
            {
                "name": "RandomResizedCrop",
                "size": [im_sz, im_sz],
                "scale": [0.35, 1.0],
                "ratio": [0.75, 4 / 3],
            }
        ]
    margin = im_sz // 8
    return [
        {
            "name": "PadIfNeeded",
            "min_height": im_sz + 2 * margin,
            "min_width": im_sz + 2 * margin,
            "border_mode": 4,
        },
        {"name": "RandomCrop", "height": im_sz, "width": im_sz},
    ]


def flip_crop(im_sz: int, base: int) -> Transforms:
    """`crop`, and a horizontal flip of half of the images."""
    return [*crop(im_sz, base), {"name": FLIP, "p": 0.5}]


def strong(im_sz: int, base: int) -> Transforms:
    """`flip_crop`, colours, small rotations, and a hole (cutout)."""
    side = im_sz // 4
    hole = {"num_holes_range": [1, 1], "hole_height_range": [side, side], "hole_width_range": [side, side]}
    return [
        *flip_crop(im_sz, base),
        {
            "name": "ColorJitter",
            "brightness": [0.7, 1.3],
            "contrast": [0.7, 1.3],
            "saturation": [0.7, 1.3],
            "hue": [-0.05, 0.05],
            "p": 0.8,
        },
        {"name": "Affine", "rotate": [-15, 15], "scale": [0.9, 1.1], "p": 0.5},
        {"name": "CoarseDropout", **hole, "fill": 128, "p": 0.5},
    ]


PRESETS: dict[str, Callable[[int, int], Transforms]] = {
    "none": none,
    "crop": crop,
    "flip_crop": flip_crop,
    "strong": strong,
}


# --- the pipeline that runs ---------------------------------------------------------------------------


class Augment:
    """The augmentation of a training set. If `is_batched`, `pieces` does it on the device; else `image`, in workers.

    `per_image`: by albumentations, even where it could be done in batches. `alternate`: whether an image is flipped is
    drawn once, and alternates from epoch to epoch (Keller Jordan, arXiv:2404.00498).
    """

    def __init__(self, transforms: Transforms, im_sz: int, seed: int, per_image: bool = False, alternate: bool = False):
        self.transforms = transforms
        self.im_sz = im_sz
        self.seed = seed
        self.alternate = alternate
        batched = [find_batched(transform) for transform in transforms]
        self.batch_transforms = [transform for transform in batched if transform]
        self.is_batched = None not in batched and not per_image
        self.pipeline = None if self.is_batched else PerImagePipeline(transforms)
        self._fused: dict[tuple[int, int, bool], FusedGather | FusedResizedCrop | None] = {}

    def draw(self, epoch: int, indices: np.ndarray, streams: list[str]) -> np.ndarray:
        """(S, B) numbers in [0, 1), one row per stream; a stream's name is the transform's number and what is drawn."""
        draws = uniform(self.seed, epoch, indices, streams)
        if self.alternate:
            for row, stream in zip(draws, streams, strict=True):
                if stream.endswith("flip"):
                    first = uniform(self.seed, 0, indices, [stream])[0]
                    row[:] = 1 - 2.0**-53 - first if epoch % 2 else first  # mirrored about the middle of [0, 1)
        return draws

    def batch(self, images: Tensor, epoch: int, indices: np.ndarray) -> Tensor:
        """uint8 (B, S, S, 3) -> uint8 (B, im_sz, im_sz, 3), one transform after another: the reference for `pieces`."""
        for number, transform in enumerate(self.batch_transforms):

            def draw(stream: str, number: int = number) -> np.ndarray:
                return self.draw(epoch, indices, [f"{number}{stream}"])[0]

            images = transform(images, draw)
        return fit_batch(images, self.im_sz)

    def pieces(
        self, store: Tensor, rows: np.ndarray, epoch: int, indices: np.ndarray
    ) -> Iterator[tuple[slice, Tensor]]:
        """The batch of `store[rows]`, piece by piece: (which of its images, uint8 (b, im_sz, im_sz, 3)).

        store (N, S, S, 3) uint8, contiguous, on any device; rows (B,): where in it the images `indices` (B,) are. As
        one gather where that gives the same pixels; else by `batch`.
        """
        height, width = store.shape[1:3]
        form = (height, width, store.device.type == "cpu")
        if form not in self._fused:
            self._fused[form] = fuse(self.batch_transforms, height, width, self.im_sz, on_cpu=form[2])
        fused = self._fused[form]
        if fused:
            yield from fused.pieces(store, rows, partial(self.draw, epoch, indices))
        else:
            images = store.index_select(0, torch.from_numpy(rows).to(store.device))
            yield slice(0, len(rows)), self.batch(images, epoch, indices)

    def image(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:
        """uint8 (S, S, 3) -> uint8 (im_sz, im_sz, 3), by albumentations."""
        assert self.pipeline
        if self.alternate:
            self._set_flips(self.pipeline, epoch, index)
        image = self.pipeline(image, key64(self.seed, "augment", epoch, index))
        if image.shape[:2] == (self.im_sz, self.im_sz):
            return image
        return fit_batch(torch.from_numpy(np.ascontiguousarray(image))[None], self.im_sz)[0].numpy()

    def _set_flips(self, pipeline: PerImagePipeline, epoch: int, index: int) -> None:
        """Make every flip certain or impossible, by the draws that `batch` would take."""
        for number, transform in enumerate(self.transforms):
            if transform["name"] == FLIP:
                draw = self.draw(epoch, np.array([index]), [f"{number}flip"])[0, 0]
                pipeline.set_chance(number, float(draw < 0.5))

    def record(self) -> Arguments:
        """What ran, for record/augm.json: albumentations' serialisation, or the kit's in the same shape."""
        if self.pipeline:
            return self.pipeline.record()
        transforms = [
            {"__class_fullname__": transform["name"], **batched.arguments}
            for transform, batched in zip(self.transforms, self.batch_transforms, strict=True)
        ]
        compose = {"__class_fullname__": "Compose", "p": 1.0, "transforms": transforms}
        return {"__version__": f"experiment-folders {VERSION}", "transform": compose}


def make_augment(params: Params, im_sz: int, base_size: int, per_image: bool = False) -> Augment:
    """The augmentation that `params.augment` names or lists, tried once. UserError when it is invalid.

    `base_size`: side S of the images it will get.
    """
    transforms = list_transforms(params, im_sz, base_size)
    for transform in transforms:
        p = transform.get("p", 0.5)
        if params.alternate_flip and transform["name"] == FLIP and p != 0.5:
            raise UserError(f"alternate_flip: {FLIP} has p {p}; the flips of half the images alternate: 0.5")
    augment = Augment(transforms, im_sz, params.seed, per_image, bool(params.alternate_flip))
    # Try it: a crop may be larger than the images.
    blank = np.zeros((base_size, base_size, 3), np.uint8)
    try:
        if augment.is_batched:
            augment.batch(torch.from_numpy(blank)[None], 0, np.zeros(1, np.int64))
        else:
            augment.image(blank, 0, 0)
    except UserError:
        raise
    except Exception as error:  # a transform's own checks raise all kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"augment: on images of {base_size} x {base_size} pixels: {reason}") from None
    return augment


def list_transforms(params: Params, im_sz: int, base_size: int) -> Transforms:
    """The transforms of the preset that `params.augment` names, or those that it lists."""
    if not isinstance(params.augment, str):
        return [{"name": item} if isinstance(item, str) else dict(item) for item in params.augment]
    if params.augment not in PRESETS:
        raise UserError(f"augment: unknown preset {params.augment!r}; {nearest(params.augment, PRESETS)}")
    return PRESETS[params.augment](im_sz, base_size)


# --- mixing -------------------------------------------------------------------------------------------


def mix(
    images: Tensor, labels: Tensor, num_classes: int, mixup: float, cutmix: float, key: int
) -> tuple[Tensor, Tensor]:
    """mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899) of a batch with itself; with both, one of them at random.

    images (B, 3, H, W), labels (B,) -> images, soft labels (B, K). `mixup` and `cutmix` are the alpha of the Beta
    distribution that the share of an image itself is drawn from; 0: off. Every draw is a function of `key`.
    """
    soft = (
        labels[:, None] == torch.arange(num_classes, device=labels.device)
    ).float()  # (B, K); one_hot would wait for the device
    rng = np.random.Generator(np.random.Philox(key=key))
    partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)  # (B,) which image each is mixed with
    is_cutmix = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if is_cutmix else mixup
    share = rng.beta(alpha, alpha)
    if is_cutmix:
        # A box of that share of the area and of the image's aspect ratio, inside the image.
        height, width = images.shape[2:]
        h, w = int(height * (1 - share) ** 0.5), int(width * (1 - share) ** 0.5)
        top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        images = images.clone()
        images[:, :, top : top + h, left : left + w] = images[partner, :, top : top + h, left : left + w]
        share = 1 - h * w / (height * width)  # what is left of it, in whole pixels
    else:
        images = torch.lerp(images[partner], images, share)
    return images, share * soft + (1 - share) * soft[partner]
