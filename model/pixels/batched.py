"""Transforms of a whole batch at once, on its device: twins of albumentations' transforms of the same names.

Every draw is a function of its counters, so batches, workers and machines change nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from utils import UserError, key64

# --- draws --------------------------------------------------------------------------------------------


def uniform(seed: int, epoch: int, indices: np.ndarray, streams: list[str]) -> np.ndarray:
    """(number of streams, B) numbers in [0, 1): of (seed, epoch, stream) and each image's index alone (SplitMix64)."""
    starts = np.array([key64(seed, epoch, stream) for stream in streams], np.uint64)[:, None]
    with np.errstate(over="ignore"):
        z = starts + (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


# --- batched twins: uint8 (B, H, W, 3) -> uint8 (B, h, w, 3) ---------------------------------------------

Draw = Callable[[str], np.ndarray]  # stream -> (B,) numbers in [0, 1)


def pad_batch(images: Tensor, t: dict[str, Any], draw: Draw) -> Tensor:
    """Reflect the border so that the image is at least min_height x min_width."""
    for axis, wanted in ((2, t["min_width"]), (1, t["min_height"])):
        length = images.shape[axis]
        if wanted > length:
            images = images.index_select(axis, torch.from_numpy(reflected(length, wanted)).to(images.device))
    return images


def reflected(length: int, wanted: int) -> np.ndarray:
    """(max(length, wanted),) which of `length` pixels each one is, the border reflected."""
    margin = max(0, wanted - length)
    return np.pad(np.arange(length), (margin // 2, margin - margin // 2), mode="reflect")


def crop_batch(images: Tensor, t: dict[str, Any], draw: Draw) -> Tensor:
    """A window per image, all in one gather."""
    height, width = images.shape[1:3]
    check_crop(t, height, width)
    top = (draw("top") * (height - t["height"] + 1)).astype(np.int64)
    left = (draw("left") * (width - t["width"] + 1)).astype(np.int64)
    return gather_windows(images, top, left, t["height"], t["width"])


def check_crop(t: dict[str, Any], height: int, width: int) -> None:
    if t["height"] > height or t["width"] > width:
        size = f"{t['width']} x {t['height']}"
        raise UserError(f"augment: RandomCrop of {size} pixels out of {width} x {height}")


def gather_windows(images: Tensor, top: np.ndarray, left: np.ndarray, height: int, width: int) -> Tensor:
    """(B, H, W, 3) and (B,) corners -> (B, height, width, 3)."""
    num, tall, wide, _ = images.shape
    pixels = images.reshape(-1)
    # All runs of `width` pixels, wherever they start, as rows of a view that overlaps itself: a row of a
    # window is then one short copy.
    runs = pixels.as_strided((len(pixels) // 3 - width + 1, width * 3), (3, 1))
    first = (np.arange(num) * tall + top)[:, None] + np.arange(height)  # (B, h) rows
    starts = torch.from_numpy((first * wide + left[:, None]).reshape(-1)).to(images.device)
    return runs.index_select(0, starts).view(num, height, width, 3)


def center_crop_batch(images: Tensor, t: dict[str, Any], draw: Draw) -> Tensor:
    top, left = (images.shape[1] - t["height"]) // 2, (images.shape[2] - t["width"]) // 2
    return images[:, top : top + t["height"], left : left + t["width"]]


def flip_batch(images: Tensor, t: dict[str, Any], draw: Draw) -> Tensor:
    chosen = torch.from_numpy(np.flatnonzero(draw("flip") < t["p"])).to(images.device)
    mirror = torch.arange(images.shape[2] - 1, -1, -1, device=images.device)
    return images.index_copy(0, chosen, images.index_select(0, chosen).index_select(2, mirror))


def resized_crop_batch(images: Tensor, t: dict[str, Any], draw: Draw) -> Tensor:
    """A random part of the area and of a random proportion, in whole pixels, resized bilinearly (arXiv:1409.4842)."""
    height, width = images.shape[1:3]
    boxes = draw_boxes(height, width, t, draw)
    if images.device.type == "cpu":
        return resize_boxes(images, np.arange(len(images)), boxes, *t["size"])
    return sample_boxes(images, boxes, *t["size"])


def draw_boxes(height: int, width: int, t: dict[str, Any], draw: Draw) -> np.ndarray:
    """(4, B) left, top, width, height. Of ten drawn boxes the first that fits the image; its middle if none does."""
    (low, high), (thin, wide) = t["scale"], np.log(t["ratio"])
    area = height * width * (low + np.stack([draw(f"area{k}") for k in range(10)]) * (high - low))  # (10, B)
    ratio = np.exp(thin + np.stack([draw(f"ratio{k}") for k in range(10)]) * (wide - thin))
    w, h = np.sqrt(area * ratio).round(), np.sqrt(area / ratio).round()
    fits = (w <= width) & (h <= height)
    first = fits.argmax(axis=0), np.arange(fits.shape[1])
    shape = np.clip(width / height, *t["ratio"])
    middle = min(width, height * shape)
    w, h = (np.where(fits.any(axis=0), s[first], m) for s, m in ((w, middle), (h, middle / shape)))
    w, h = (np.maximum(s.round(), 1).astype(np.int64) for s in (w, h))
    left, top = (draw("left") * (width - w + 1)).astype(np.int64), (draw("top") * (height - h + 1)).astype(np.int64)
    return np.stack([left, top, w, h])


def resize_boxes(store: Tensor, rows: np.ndarray, boxes: np.ndarray, height: int, width: int) -> Tensor:
    """One box after another, (4, B), out of the images at `rows` (B,), in integers: on a processor many times as fast.

    What `sample_boxes` gives, but for the rounding to whole grey levels.
    """
    out = torch.empty((len(rows), height, width, 3), dtype=torch.uint8)
    resize = partial(torch.ops.aten.upsample_bilinear2d.out, output_size=(height, width), align_corners=False)
    sources, targets = store.permute(0, 3, 1, 2), out.permute(0, 3, 1, 2).split(1)
    for target, row, left, top, w, h in zip(targets, rows.tolist(), *boxes.tolist(), strict=True):
        resize(sources[row : row + 1, :, top : top + h, left : left + w], out=target)
    return out


def sample_boxes(images: Tensor, boxes: np.ndarray, height: int, width: int) -> Tensor:
    """All boxes at once, in floats: for GPUs. (B, H, W, 3), (4, B) -> (B, height, width, 3)."""
    left, top, w, h = boxes[:, :, None]  # (B, 1) each
    # No pixel from outside of a box, as where it is cut out first.
    x = np.clip(left + (np.arange(width) + 0.5) / width * w, left + 0.5, left + w - 0.5) / images.shape[2] * 2 - 1
    y = np.clip(top + (np.arange(height) + 0.5) / height * h, top + 0.5, top + h - 0.5) / images.shape[1] * 2 - 1
    grid = np.stack(np.broadcast_arrays(x[:, None, :], y[:, :, None]), axis=-1).astype(np.float32)  # (B, h, w, 2)
    pixels = images.permute(0, 3, 1, 2).float()
    sampled = grid_sample(pixels, torch.from_numpy(grid).to(images.device), padding_mode="border", align_corners=False)
    return sampled.round().to(torch.uint8).permute(0, 2, 3, 1)


def cutout_batch(images: Tensor, t: dict[str, Any], draw: Draw) -> Tensor:
    """One hole of a fixed size per image (DeVries & Taylor, arXiv:1708.04552)."""
    _, height, width, _ = images.shape
    h, w = t["hole_height_range"][0], t["hole_width_range"][0]
    top = torch.from_numpy((draw("hole_top") * (height - h + 1)).astype(np.int64)).to(images.device)
    left = torch.from_numpy((draw("hole_left") * (width - w + 1)).astype(np.int64)).to(images.device)
    applied = torch.from_numpy(draw("hole") < t["p"]).to(images.device)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = (y >= top[:, None]) & (y < top[:, None] + h)  # (B, H)
    in_columns = (x >= left[:, None]) & (x < left[:, None] + w)
    hole = in_rows[:, :, None] & in_columns[:, None, :] & applied[:, None, None]
    return images.masked_fill(hole[..., None], int(t["fill"]))


Twin = Callable[[Tensor, dict[str, Any], Draw], Tensor]
TwinOf = tuple[Twin, dict[str, Any]]
TWINS: dict[str, TwinOf] = {  # name -> (twin, the arguments it knows, with their defaults)
    "PadIfNeeded": (pad_batch, {"min_height": None, "min_width": None, "border_mode": 0, "p": 1.0}),
    "RandomCrop": (crop_batch, {"height": None, "width": None, "p": 1.0}),
    "CenterCrop": (center_crop_batch, {"height": None, "width": None, "p": 1.0}),
    "RandomResizedCrop": (
        resized_crop_batch,
        {"size": None, "scale": [0.08, 1.0], "ratio": [0.75, 4 / 3], "p": 1.0},
    ),
    "HorizontalFlip": (flip_batch, {"p": 0.5}),
    "CoarseDropout": (
        cutout_batch,
        {"num_holes_range": [1, 2], "hole_height_range": None, "hole_width_range": None, "fill": 0, "p": 0.5},
    ),
}


def twin_of(transform: dict[str, Any]) -> TwinOf | None:
    """The batched function and its full arguments; None when only albumentations can do it."""
    name = transform["name"]
    given = {key: value for key, value in transform.items() if key != "name"}
    if name not in TWINS:
        return None
    function, defaults = TWINS[name]
    arguments = defaults | given
    is_known = set(given) <= set(defaults)
    return (function, arguments) if is_known and all(_twin_takes(k, v, name) for k, v in arguments.items()) else None


def _twin_takes(key: str, value: Any, name: str) -> bool:
    """Whether a twin can do this value. What it cannot, or nobody can, albumentations does or refuses."""

    def is_int(v: Any) -> bool:
        return isinstance(v, int) and not isinstance(v, bool)

    def is_range(v: Any, kind: Callable[[Any], bool]) -> bool:
        return isinstance(v, list | tuple) and len(v) == 2 and all(map(kind, v)) and 0 < v[0] <= v[1]

    if key == "p":
        is_share = isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value <= 1
        return is_share if name in ("HorizontalFlip", "CoarseDropout") else is_share and value == 1
    if key in ("scale", "ratio"):
        is_fine = is_range(value, lambda v: isinstance(v, float | int))
        return is_fine and (key == "ratio" or value[1] <= 1)
    if key in ("hole_height_range", "hole_width_range"):
        return is_range(value, is_int) and value[0] == value[1]
    if key == "size":
        return isinstance(value, list | tuple) and len(value) == 2 and all(is_int(v) and v > 0 for v in value)
    fixed = {"border_mode": 4, "num_holes_range": [1, 1]}  # reflect; one hole
    if key in fixed:
        return (list(value) if isinstance(value, tuple) else value) == fixed[key]
    return is_int(value) and (0 <= value <= 255 if key == "fill" else value > 0)


def fit_batch(images: Tensor, im_sz: int) -> Tensor:
    """(B, H, W, 3) -> (B, im_sz, im_sz, 3): the centre of a larger image, a smaller one resized."""
    height, width = images.shape[1:3]
    if min(height, width) < im_sz:
        chw = images.permute(0, 3, 1, 2).float()
        chw = interpolate(chw, (im_sz, im_sz), mode="bilinear", antialias=True)
        return chw.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    top, left = (height - im_sz) // 2, (width - im_sz) // 2
    return images[:, top : top + im_sz, left : left + im_sz]
