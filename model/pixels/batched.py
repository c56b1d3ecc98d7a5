"""Transforms of a whole batch at once, on its device: what albumentations' transforms of the same names do to an image.

Every draw is a function of its counters, so that batches, workers and machines change nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from utils import UserError, key64

Arguments = dict[str, Any]  # of a transform, by albumentations' names
Draw = Callable[[str], np.ndarray]  # name of a stream -> (B,) numbers in [0, 1)

# --- draws --------------------------------------------------------------------------------------------


def uniform(seed: int, epoch: int, indices: np.ndarray, streams: list[str]) -> np.ndarray:
    """(S, B) numbers in [0, 1), one row per stream: functions of (seed, epoch, stream) and the image's index alone.

    SplitMix64, its state advanced to each index: Steele, Lea & Flood, Fast splittable pseudorandom number generators
    (2014). The upper 53 bits become a float64.
    """
    starts = np.array([key64(seed, epoch, stream) for stream in streams], np.uint64)[:, None]  # (S, 1)
    with np.errstate(over="ignore"):
        z = starts + (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # (S, B)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


def draw_integers(draws: np.ndarray, num: int | np.ndarray) -> np.ndarray:
    """(B,) draws in [0, 1) -> (B,) whole numbers from 0 to num - 1."""
    return (draws * num).astype(np.int64)


# --- padding, crops and flips: uint8 (B, H, W, 3) -> uint8 (B, h, w, 3) ---------------------------------


def pad_batch(images: Tensor, arguments: Arguments, draw: Draw) -> Tensor:
    """Reflect the border, so that the images are at least min_height x min_width."""
    for axis, wanted in ((2, arguments["min_width"]), (1, arguments["min_height"])):
        length = images.shape[axis]
        if wanted > length:
            sources = torch.from_numpy(reflect_border(length, wanted)).to(images.device)
            images = images.index_select(axis, sources)
    return images


def reflect_border(length: int, wanted: int) -> np.ndarray:
    """(max(length, wanted),) source of each pixel of a padded row of `length`; the right border is the wider one."""
    margin = max(0, wanted - length)
    return np.pad(np.arange(length), (margin // 2, margin - margin // 2), mode="reflect")


def crop_batch(images: Tensor, arguments: Arguments, draw: Draw) -> Tensor:
    """A window at random per image, all in one gather."""
    height, width = images.shape[1:3]
    check_crop(arguments, height, width)
    top = draw_integers(draw("top"), height - arguments["height"] + 1)
    left = draw_integers(draw("left"), width - arguments["width"] + 1)
    return gather_windows(images, top, left, arguments["height"], arguments["width"])


def check_crop(arguments: Arguments, height: int, width: int) -> None:
    """UserError when a crop is larger than its images."""
    if arguments["height"] > height or arguments["width"] > width:
        size = f"{arguments['width']} x {arguments['height']}"
        raise UserError(f"augment: RandomCrop of {size} pixels out of {width} x {height}")


def gather_windows(images: Tensor, top: np.ndarray, left: np.ndarray, height: int, width: int) -> Tensor:
    """(B, H, W, 3) and (B,) corners -> (B, height, width, 3)."""
    num_images, num_rows, num_columns, _ = images.shape
    pixels = images.reshape(-1)
    # Every run of `width` pixels, wherever it starts, is a row of a view that overlaps itself: a row of a window is
    # then one short copy.
    runs = pixels.as_strided((len(pixels) // 3 - width + 1, width * 3), (3, 1))
    rows = (np.arange(num_images) * num_rows + top)[:, None] + np.arange(height)  # (B, h)
    starts = torch.from_numpy((rows * num_columns + left[:, None]).reshape(-1)).to(images.device)
    return runs.index_select(0, starts).view(num_images, height, width, 3)


def center_crop_batch(images: Tensor, arguments: Arguments, draw: Draw) -> Tensor:
    """The window in the middle, rounded towards the top left."""
    height, width = arguments["height"], arguments["width"]
    top = (images.shape[1] - height) // 2
    left = (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width]


def flip_batch(images: Tensor, arguments: Arguments, draw: Draw) -> Tensor:
    """Flip a fraction `p` of the images left to right."""
    chosen = torch.from_numpy(np.flatnonzero(draw("flip") < arguments["p"])).to(images.device)
    mirror = torch.arange(images.shape[2] - 1, -1, -1, device=images.device)
    return images.index_copy(0, chosen, images.index_select(0, chosen).index_select(2, mirror))


def cutout_batch(images: Tensor, arguments: Arguments, draw: Draw) -> Tensor:
    """One hole of a fixed size in a share `p` of the images (DeVries & Taylor, arXiv:1708.04552), inside the image."""
    _, height, width, _ = images.shape
    h, w = arguments["hole_height_range"][0], arguments["hole_width_range"][0]
    top = torch.from_numpy(draw_integers(draw("hole_top"), height - h + 1)).to(images.device)
    left = torch.from_numpy(draw_integers(draw("hole_left"), width - w + 1)).to(images.device)
    is_cut = torch.from_numpy(draw("hole") < arguments["p"]).to(images.device)
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    in_rows = (y >= top[:, None]) & (y < top[:, None] + h)  # (B, H)
    in_columns = (x >= left[:, None]) & (x < left[:, None] + w)  # (B, W)
    hole = in_rows[:, :, None] & in_columns[:, None, :] & is_cut[:, None, None]  # (B, H, W)
    return images.masked_fill(hole[..., None], int(arguments["fill"]))


# --- random resized crops -----------------------------------------------------------------------------


def resized_crop_batch(images: Tensor, arguments: Arguments, draw: Draw) -> Tensor:
    """A random share of the area, of a random aspect ratio, resized bilinearly (Szegedy et al., arXiv:1409.4842)."""
    height, width = images.shape[1:3]
    boxes = draw_boxes(height, width, arguments, draw)
    if images.device.type == "cpu":
        return resize_boxes(images, np.arange(len(images)), boxes, *arguments["size"])
    return sample_boxes(images, boxes, *arguments["size"])


def draw_boxes(height: int, width: int, arguments: Arguments, draw: Draw) -> np.ndarray:
    """(4, B) left, top, width, height in whole pixels. Of ten boxes drawn, the first that fits into the image.

    Area uniform in `scale`, logarithm of the aspect ratio uniform in `ratio`, as in torchvision's RandomResizedCrop.
    Where none of the ten fits: the largest box of an allowed ratio that does.
    """
    low, high = arguments["scale"]
    log_low, log_high = np.log(arguments["ratio"])
    # Ten candidates for each image: w * h = area, w / h = ratio.
    area = height * width * (low + np.stack([draw(f"area{k}") for k in range(10)]) * (high - low))  # (10, B)
    ratio = np.exp(log_low + np.stack([draw(f"ratio{k}") for k in range(10)]) * (log_high - log_low))  # (10, B)
    widths = np.sqrt(area * ratio).round()
    heights = np.sqrt(area / ratio).round()
    # The first that fits, or the largest box.
    fits = (widths <= width) & (heights <= height)  # (10, B)
    first = fits.argmax(axis=0), np.arange(fits.shape[1])
    image_ratio = np.clip(width / height, *arguments["ratio"])
    widest = min(width, height * image_ratio)
    w = np.where(fits.any(axis=0), widths[first], widest)
    h = np.where(fits.any(axis=0), heights[first], widest / image_ratio)
    w = np.maximum(w.round(), 1).astype(np.int64)
    h = np.maximum(h.round(), 1).astype(np.int64)
    # Anywhere in the image.
    left = draw_integers(draw("left"), width - w + 1)
    top = draw_integers(draw("top"), height - h + 1)
    return np.stack([left, top, w, h])


def resize_boxes(store: Tensor, rows: np.ndarray, boxes: np.ndarray, height: int, width: int) -> Tensor:
    """Boxes (4, B) out of the images at `rows` (B,) of `store` (N, H, W, 3) -> (B, height, width, 3), on the CPU.

    One after another and in integers, which is many times as fast there as `sample_boxes`, whose pixels these are but
    for the rounding to whole grey levels.
    """
    out = torch.empty((len(rows), height, width, 3), dtype=torch.uint8)
    resize = partial(torch.ops.aten.upsample_bilinear2d.out, output_size=(height, width), align_corners=False)
    sources = store.permute(0, 3, 1, 2)  # (N, 3, H, W)
    targets = out.permute(0, 3, 1, 2).split(1)
    for target, row, left, top, w, h in zip(targets, rows.tolist(), *boxes.tolist(), strict=True):
        resize(sources[row : row + 1, :, top : top + h, left : left + w], out=target)
    return out


def sample_boxes(images: Tensor, boxes: np.ndarray, height: int, width: int) -> Tensor:
    """All boxes (4, B) at once, in floats: for GPUs. (B, H, W, 3) -> (B, height, width, 3)."""
    left, top, w, h = boxes[:, :, None]  # (B, 1) each
    # Centres of the new pixels in the old image, where -1 and 1 are its borders. They stay half a pixel inside the box,
    # so that no pixel from outside of it counts.
    x = np.clip(left + (np.arange(width) + 0.5) / width * w, left + 0.5, left + w - 0.5) / images.shape[2] * 2 - 1
    y = np.clip(top + (np.arange(height) + 0.5) / height * h, top + 0.5, top + h - 0.5) / images.shape[1] * 2 - 1
    grid = np.stack(np.broadcast_arrays(x[:, None, :], y[:, :, None]), axis=-1).astype(np.float32)  # (B, h, w, 2)
    pixels = images.permute(0, 3, 1, 2).float()
    sampled = grid_sample(pixels, torch.from_numpy(grid).to(images.device), padding_mode="border", align_corners=False)
    return sampled.round().to(torch.uint8).permute(0, 2, 3, 1)


# --- which transforms can be done in batches ----------------------------------------------------------

BatchFunction = Callable[[Tensor, Arguments, Draw], Tensor]


@dataclass(frozen=True)
class BatchTransform:
    """A transform of a whole batch, with all of its arguments."""

    function: BatchFunction
    arguments: Arguments

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        return self.function(images, self.arguments, draw)


BATCHED: dict[str, BatchTransform] = {  # name -> function and default arguments; None: no default
    "PadIfNeeded": BatchTransform(pad_batch, {"min_height": None, "min_width": None, "border_mode": 0, "p": 1.0}),
    "RandomCrop": BatchTransform(crop_batch, {"height": None, "width": None, "p": 1.0}),
    "CenterCrop": BatchTransform(center_crop_batch, {"height": None, "width": None, "p": 1.0}),
    "RandomResizedCrop": BatchTransform(
        resized_crop_batch, {"size": None, "scale": [0.08, 1.0], "ratio": [0.75, 4 / 3], "p": 1.0}
    ),
    "HorizontalFlip": BatchTransform(flip_batch, {"p": 0.5}),
    "CoarseDropout": BatchTransform(
        cutout_batch,
        {"num_holes_range": [1, 2], "hole_height_range": None, "hole_width_range": None, "fill": 0, "p": 0.5},
    ),
}
WITH_CHANCE = ("HorizontalFlip", "CoarseDropout")  # the others always happen
FIXED = {"border_mode": 4, "num_holes_range": [1, 1]}  # reflected; one hole: what the functions above do


def find_batched(transform: Arguments) -> BatchTransform | None:
    """The batched form of a transform ({"name": ..., arguments}); None when only albumentations can do it."""
    name = transform["name"]
    given = {key: value for key, value in transform.items() if key != "name"}
    if name not in BATCHED or not set(given) <= set(BATCHED[name].arguments):
        return None
    arguments = BATCHED[name].arguments | given
    if not all(_is_supported(name, key, value) for key, value in arguments.items()):
        return None
    return BatchTransform(BATCHED[name].function, arguments)


def _is_supported(name: str, key: str, value: object) -> bool:
    """Whether the batched function can do this value. What it cannot, albumentations does, or refuses."""
    if key == "p":
        is_share = _is_number(value) and 0 <= value <= 1
        return is_share and (name in WITH_CHANCE or value == 1)
    if key in FIXED:
        return (list(value) if isinstance(value, tuple) else value) == FIXED[key]
    if key in ("scale", "ratio"):
        return _is_range(value) and (key == "ratio" or value[1] <= 1)
    if key in ("hole_height_range", "hole_width_range"):
        return _is_range(value) and all(map(_is_whole, value)) and value[0] == value[1]
    if key == "size":
        return isinstance(value, list | tuple) and len(value) == 2 and all(_is_whole(v) and v > 0 for v in value)
    return _is_whole(value) and (0 <= value <= 255 if key == "fill" else value > 0)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _is_range(value: object) -> TypeGuard[Sequence[float]]:
    """Two positive numbers, the smaller one first."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(isinstance(v, float | int) for v in value) and 0 < value[0] <= value[1]


# --- the size of what comes out -----------------------------------------------------------------------


def fit_batch(images: Tensor, im_sz: int) -> Tensor:
    """(B, H, W, 3) -> (B, im_sz, im_sz, 3): the centre of a larger image, a smaller one resized."""
    height, width = images.shape[1:3]
    if min(height, width) < im_sz:
        channels_first = images.permute(0, 3, 1, 2).float()
        resized = interpolate(channels_first, (im_sz, im_sz), mode="bilinear", antialias=True)
        return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    top, left = (height - im_sz) // 2, (width - im_sz) // 2
    return images[:, top : top + im_sz, left : left + im_sz]
