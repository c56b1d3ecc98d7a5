"""Pad, crop, flip and cut out as one gather: to the bit what the twins of these names do one after another.

A window is where the pixels of an augmented image come from: rows and columns of its base image, reflected at the
border, perhaps mirrored. It is worked out from the draws before any pixel moves, so images are read once, from
wherever they lie.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.pixels.batched import (
    TwinOf,
    center_crop_batch,
    check_crop,
    crop_batch,
    cutout_batch,
    draw_boxes,
    flip_batch,
    pad_batch,
    reflected,
    resize_boxes,
    resized_crop_batch,
)

PIECE = 1 << 18  # bytes of uint8 images that are worked on at a time: they stay in the processor's cache
Draws = Callable[[list[str]], np.ndarray]  # streams -> (number of streams, B) numbers in [0, 1)


@dataclass
class Holes:
    """The rectangles that a CoarseDropout fills: (B,) top and left, the same size for all, where `is_cut` (B,)."""

    top: np.ndarray
    left: np.ndarray
    is_cut: np.ndarray
    height: int
    width: int
    fill: int

    def part(self, part: slice) -> "Holes":
        return Holes(self.top[part], self.left[part], self.is_cut[part], self.height, self.width, self.fill)


@dataclass
class Windows:
    """Where the images of a batch are cut: (B,) corners in the padded image, and which are mirrored then."""

    top: np.ndarray
    left: np.ndarray
    is_flipped: np.ndarray
    holes: list[Holes] = field(default_factory=list)

    def part(self, part: slice) -> "Windows":
        holes = [hole.part(part) for hole in self.holes]
        return Windows(self.top[part], self.left[part], self.is_flipped[part], holes)


class Recipe:
    """The windows of `twins` on images of height x width pixels, and the gather. See `make_recipe`."""

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width  # of what the steps give
        self.rows, self.columns = np.arange(height), np.arange(width)  # (H + padding,) source of each padded row
        self.base_width, self.padding = width, 0  # columns added on the left
        self.steps: list[tuple[Any, ...]] = []
        self.streams: list[str] = []
        self.maps: dict[torch.device, tuple[Tensor, ...]] = {}

    # Each step says whether it can be a part of the gather.

    def pad(self, t: dict[str, Any], number: int) -> bool:
        rows, columns = reflected(self.height, t["min_height"]), reflected(self.width, t["min_width"])
        if self.steps and (len(rows), len(columns)) != (self.height, self.width):
            return False
        self.padding += (len(columns) - self.width) // 2
        self.rows, self.columns = self.rows[rows], self.columns[columns]
        self.height, self.width = len(rows), len(columns)
        return True

    def random_crop(self, t: dict[str, Any], number: int) -> bool:
        check_crop(t, self.height, self.width)
        return self.crop(t["height"], t["width"], number)

    def center_crop(self, t: dict[str, Any], number: int) -> bool:
        return t["height"] <= self.height and t["width"] <= self.width and self.crop(t["height"], t["width"], None)

    def crop(self, height: int, width: int, number: int | None) -> bool:
        """At random with the draws of transform `number`, in the middle when there is none."""
        spare = self.height - height, self.width - width
        if spare == (0, 0):
            return True
        if any(step[0] == "hole" for step in self.steps):
            return False
        streams = [] if number is None else [f"{number}top", f"{number}left"]
        self.steps.append(("crop", self._stream(*streams), spare))
        self.height, self.width = height, width
        return True

    def flip(self, t: dict[str, Any], number: int) -> bool:
        if any(step[0] == "hole" for step in self.steps):
            return False
        self.steps.append(("flip", self._stream(f"{number}flip"), t["p"]))
        return True

    def hole(self, t: dict[str, Any], number: int) -> bool:
        size = t["hole_height_range"][0], t["hole_width_range"][0]
        streams = self._stream(f"{number}hole_top", f"{number}hole_left", f"{number}hole")
        self.steps.append(("hole", streams, (*size, t["fill"], t["p"], self.height, self.width)))
        return True

    def _stream(self, *names: str) -> slice:
        self.streams += names
        return slice(len(self.streams) - len(names), len(self.streams))

    def finish(self) -> bool:
        """Work out what reflection puts beside a window's own columns; False when that lies outside of the window."""
        lefts = np.arange(len(self.columns) - self.width + 1)
        own = np.arange(self.width)
        self.sources = self.columns[lefts[:, None] + own] - (lefts - self.padding)[:, None]  # (number of lefts, w)
        self.is_reflected = self.sources != own
        return bool(((self.sources >= 0) & (self.sources < self.width)).all())

    # --- draws -> windows ---

    def windows(self, num: int, draws: Draws) -> Windows:
        """The windows of `num` images."""
        drawn = draws(self.streams) if self.streams else np.empty((0, num))
        found = Windows(np.zeros(num, np.int64), np.zeros(num, np.int64), np.zeros(num, bool))
        for kind, streams, how in self.steps:
            values = drawn[streams]
            if kind == "crop":
                down, right = how
                top = (values[0] * (down + 1)).astype(np.int64) if len(values) else down // 2
                left = (values[1] * (right + 1)).astype(np.int64) if len(values) else right // 2
                found.top += top
                found.left += np.where(found.is_flipped, right - left, left)
            elif kind == "flip":
                found.is_flipped ^= values[0] < how
            else:
                h, w, fill, p, height, width = how
                top = (values[0] * (height - h + 1)).astype(np.int64)
                left = (values[1] * (width - w + 1)).astype(np.int64)
                found.holes.append(Holes(top, left, values[2] < p, h, w, fill))
        return found

    # --- the gather ---

    def pieces(self, store: Tensor, rows: np.ndarray, draws: Draws) -> Iterator[tuple[slice, Tensor]]:
        """Pieces of the batch: which of its images, and uint8 (b, h, w, 3).

        store (N, H, W, 3) uint8, contiguous; rows (B,): where in it the images are.
        """
        windows = self.windows(len(rows), draws)
        if store.device.type != "cpu":
            yield slice(0, len(rows)), self.gather_by_pixel(store, rows, windows)
            return
        for part in slices(len(rows), max(1, PIECE // (self.height * self.width * 3))):
            yield part, self.gather_by_run(store, rows[part], windows.part(part))

    def gather_by_pixel(self, store: Tensor, rows: np.ndarray, windows: Windows) -> Tensor:
        """By the index of every pixel: what a GPU is fast at. One transfer of a few numbers per image."""
        device, tall, wide = store.device, store.shape[1], store.shape[2]
        holes = [part for hole in windows.holes for part in (hole.top, hole.left, hole.is_cut)]
        numbers = torch.from_numpy(np.stack([rows, windows.top, windows.left, windows.is_flipped, *holes]))
        row, top, left, is_flipped, *cuts = numbers.to(device, non_blocking=True)[:, :, None]  # (B, 1) each
        if device not in self.maps:
            parts = self.rows, self.columns, np.arange(self.height), np.arange(self.width)
            self.maps[device] = tuple(torch.from_numpy(part).to(device) for part in parts)
        sources_y, sources_x, y, x = self.maps[device]
        column = sources_x[left + torch.where(is_flipped > 0, self.width - 1 - x, x)]  # (B, w)
        line = (row * tall + sources_y[top + y]) * wide  # (B, h)
        pixels = store.view(-1, 3).index_select(0, (line[:, :, None] + column[:, None, :]).view(-1))
        images = pixels.view(len(rows), self.height, self.width, 3)
        for number, hole in enumerate(windows.holes):
            hole_top, hole_left, is_cut = cuts[3 * number : 3 * number + 3]
            in_rows = (y >= hole_top) & (y < hole_top + hole.height)  # (B, h)
            in_columns = (x >= hole_left) & (x < hole_left + hole.width) & (is_cut > 0)
            images.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :])[..., None], hole.fill)
        return images

    def gather_by_run(self, store: Tensor, rows: np.ndarray, windows: Windows) -> Tensor:
        """By runs of pixels, one short copy per row of a window: what a processor is fast at.

        A window that leaves its image begins in the row before or ends in the row after; these columns are then
        replaced by the reflected ones.
        """
        num, tall, wide = len(rows), store.shape[1], store.shape[2]
        if (self.height, self.width) == (tall, wide) == (len(self.rows), len(self.columns)):
            return mirror_and_cut(store.index_select(0, torch.from_numpy(rows)), windows)
        pixels = store.view(-1)
        if len(pixels) // 3 < self.width:
            return self.gather_by_pixel(store, rows, windows)
        runs = pixels.as_strided((len(pixels) // 3 - self.width + 1, self.width * 3), (3, 1))  # they overlap
        line = rows[:, None] * tall + self.rows[windows.top[:, None] + np.arange(self.height)]  # (b, h)
        starts = (line * wide + (windows.left - self.padding)[:, None]).reshape(-1)
        inside = starts.clip(0, len(runs) - 1)
        images = runs.index_select(0, torch.from_numpy(inside)).view(num, self.height, self.width, 3)
        for place in np.flatnonzero(inside != starts):  # before the first pixel of all, or after the last one
            image, y = divmod(int(place), self.height)
            sources = self.columns[windows.left[image] + np.arange(self.width)]
            images[image, y] = store.view(-1, wide, 3)[int(line[image, y])][torch.from_numpy(sources)]
        if self.is_reflected.any():
            as_pixels = images.numpy().view("V3")[..., 0]  # (b, h, w), three bytes each
            image, column = np.nonzero(self.is_reflected[windows.left])
            as_pixels[image, :, column] = as_pixels[image, :, self.sources[windows.left[image], column]]
        return mirror_and_cut(images, windows)


def mirror_and_cut(images: Tensor, windows: Windows) -> Tensor:
    """The flips and holes of `windows`, perhaps in place. (b, h, w, 3) uint8 on the CPU."""
    chosen = np.flatnonzero(windows.is_flipped)
    if len(chosen) == len(images):
        images = images.permute(0, 3, 1, 2).flip(-1).permute(0, 2, 3, 1)
    elif len(chosen):
        # Channels last as a picture's are: for these torch has a flip that moves many pixels at a time.
        mirrored = images.index_select(0, torch.from_numpy(chosen)).permute(0, 3, 1, 2).flip(-1)
        images.numpy()[chosen] = mirrored.permute(0, 2, 3, 1).numpy()
    for hole in windows.holes:
        for image in np.flatnonzero(hole.is_cut).tolist():
            top, left = int(hole.top[image]), int(hole.left[image])  # < 0 where the hole is larger than the image
            images[image, max(0, top) : top + hole.height, max(0, left) : left + hole.width] = hole.fill
    return images


@contextmanager
def one_thread() -> Iterator[None]:
    """Cheap work on small pieces: more threads would wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class BoxRecipe:
    """A RandomResizedCrop, and a recipe for what comes after it. On the CPU alone."""

    def __init__(self, arguments: dict[str, Any], height: int, width: int, rest: Recipe):
        self.arguments, self.height, self.width, self.rest = arguments, height, width, rest

    def pieces(self, store: Tensor, rows: np.ndarray, draws: Draws) -> Iterator[tuple[slice, Tensor]]:
        boxes = draw_boxes(self.height, self.width, self.arguments, lambda stream: draws([f"0{stream}"])[0])
        windows = self.rest.windows(len(rows), draws)
        size = max(1, PIECE // (self.rest.height * self.rest.width * 3))
        height, width = self.arguments["size"]
        for part in slices(len(rows), size):
            images = resize_boxes(store, rows[part], boxes[:, part], height, width)
            yield part, self.rest.gather_by_run(images, np.arange(len(images)), windows.part(part))


def slices(num: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, num)) for start in range(0, num, size))


def make_recipe(twins: list[TwinOf], height: int, width: int, im_sz: int, on_cpu: bool) -> Recipe | BoxRecipe | None:
    """What is equal to `twins` on images of height x width and the centre crop after them; None: nothing is.

    There is one for padding, then crops and flips in any order, then holes; on the CPU also behind a RandomResizedCrop.
    """
    first = twins[0] if twins else None
    if first and first[0] is resized_crop_batch and on_cpu:
        out_height, out_width = first[1]["size"]
        rest = _compile(twins, out_height, out_width, im_sz, start=1)
        return rest and BoxRecipe(first[1], height, width, rest)
    return _compile(twins, height, width, im_sz)


def _compile(twins: list[TwinOf], height: int, width: int, im_sz: int, start: int = 0) -> Recipe | None:
    recipe = Recipe(height, width)
    for number, (function, t) in enumerate(twins[start:], start):
        step = STEPS.get(function)
        if step is None or not step(recipe, t, number):
            return None
    if min(recipe.height, recipe.width) < im_sz or not recipe.crop(im_sz, im_sz, None):
        return None
    return recipe if recipe.finish() else None


STEPS: dict[Callable, Callable[[Recipe, dict[str, Any], int], bool]] = {
    pad_batch: Recipe.pad,
    crop_batch: Recipe.random_crop,
    center_crop_batch: Recipe.center_crop,
    flip_batch: Recipe.flip,
    cutout_batch: Recipe.hole,
}
