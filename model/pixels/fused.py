"""Pad, crop, flip and cut out as one gather: bit-identical to these transforms one after another.

A window is where the pixels of an augmented image come from: rows and columns of its base image, reflected at the
border, perhaps mirrored. Windows follow from the draws before any pixel moves, so images are read once, from where
they are stored.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from model.pixels.batched import (
    Arguments,
    BatchFunction,
    BatchTransform,
    center_crop_batch,
    check_crop,
    crop_batch,
    cutout_batch,
    draw_boxes,
    flip_batch,
    pad_batch,
    reflect_border,
    resize_boxes,
    resized_crop_batch,
)
from model.pixels.windows import Crop, Cutout, Flip, Windows

PIECE = 1 << 18  # bytes of uint8 images that are worked on at a time: they stay in the processor's cache
DrawAll = Callable[[list[str]], np.ndarray]  # names of S streams -> (S, B) numbers in [0, 1)
Pieces = Iterator[tuple[slice, Tensor]]  # which images of the batch, and uint8 (b, h, w, 3)


# --- transforms -> windows -> pixels --------------------------------------------------------------------


class FusedGather:
    """Transforms of base images of height x width pixels as windows, and the gather of these. `fuse` makes it.

    Each `add_` method takes up one transform, `number` in the pipeline, and says whether that is possible.
    """

    def __init__(self, height: int, width: int):
        self.height = height  # of the windows so far
        self.width = width
        self.rows = np.arange(height)  # (padded height,) the base image's row that is in each padded row
        self.columns = np.arange(width)
        self.padding = 0  # columns added on the left
        self.steps: list[Crop | Flip | Cutout] = []
        self.streams: list[str] = []
        self.maps: dict[torch.device, tuple[Tensor, ...]] = {}  # the arrays of gather_by_pixel, by device

    def add_padding(self, arguments: Arguments, number: int) -> bool:
        rows = reflect_border(self.height, arguments["min_height"])
        columns = reflect_border(self.width, arguments["min_width"])
        if (len(rows), len(columns)) == (self.height, self.width):
            return True  # nothing to add
        if self.steps:
            return False
        self.padding += (len(columns) - self.width) // 2
        self.rows, self.columns = self.rows[rows], self.columns[columns]
        self.height, self.width = len(rows), len(columns)
        return True

    def add_random_crop(self, arguments: Arguments, number: int) -> bool:
        check_crop(arguments, self.height, self.width)
        return self.add_crop(arguments["height"], arguments["width"], [f"{number}top", f"{number}left"])

    def add_center_crop(self, arguments: Arguments, number: int) -> bool:
        height, width = arguments["height"], arguments["width"]
        return height <= self.height and width <= self.width and self.add_crop(height, width, [])

    def add_crop(self, height: int, width: int, streams: list[str]) -> bool:
        """At random by the draws of two streams, top and left; in the middle without."""
        spare = self.height - height, self.width - width
        if spare == (0, 0):
            return True
        if self._has_holes():
            return False
        self.steps.append(Crop(self._add_streams(*streams), spare))
        self.height, self.width = height, width
        return True

    def add_flip(self, arguments: Arguments, number: int) -> bool:
        if self._has_holes():
            return False
        self.steps.append(Flip(self._add_streams(f"{number}flip"), arguments["p"]))
        return True

    def add_cutout(self, arguments: Arguments, number: int) -> bool:
        height, width = arguments["hole_height_range"][0], arguments["hole_width_range"][0]
        streams = self._add_streams(f"{number}hole_top", f"{number}hole_left", f"{number}hole")
        self.steps.append(Cutout(streams, height, width, arguments["fill"], arguments["p"], self.height, self.width))
        return True

    def _has_holes(self) -> bool:
        return any(isinstance(step, Cutout) for step in self.steps)

    def _add_streams(self, *names: str) -> slice:
        """The rows that the draws of these streams will have."""
        self.streams += names
        return slice(len(self.streams) - len(names), len(self.streams))

    def finish(self) -> bool:
        """Work out which of a window's own columns are reflected beside its image; False if one is outside of it."""
        lefts = np.arange(len(self.columns) - self.width + 1)  # (L,) where a window may begin
        own = np.arange(self.width)
        self.sources = self.columns[lefts[:, None] + own] - (lefts - self.padding)[:, None]  # (L, w)
        self.is_reflected = self.sources != own  # (L, w)
        return bool(((self.sources >= 0) & (self.sources < self.width)).all())

    def draw_windows(self, num_images: int, draw_all: DrawAll) -> Windows:
        """The windows of a batch."""
        draws = draw_all(self.streams) if self.streams else np.empty((0, num_images))  # (S, B)
        corners = np.zeros((2, num_images), np.int64)
        windows = Windows(corners[0], corners[1], np.zeros(num_images, bool))
        for step in self.steps:
            step.apply(windows, draws[step.streams])
        return windows

    def pieces(self, store: Tensor, rows: np.ndarray, draw_all: DrawAll) -> Pieces:
        """The batch of the images at `rows` (B,) of `store` (N, H, W, 3), uint8 and contiguous, piece by piece."""
        windows = self.draw_windows(len(rows), draw_all)
        if store.device.type != "cpu":
            yield slice(0, len(rows)), self.gather_by_pixel(store, rows, windows)
            return
        for part in cut(len(rows), self.height * self.width * 3):
            yield part, self.gather_by_run(store, rows[part], windows.select(part))

    def gather_by_pixel(self, store: Tensor, rows: np.ndarray, windows: Windows) -> Tensor:
        """By the index of every pixel, which GPUs are fast at. -> (B, h, w, 3)"""
        device, num_rows, num_columns = store.device, store.shape[1], store.shape[2]
        # One transfer of a few numbers per image.
        holes = [array for hole in windows.holes for array in (hole.top, hole.left, hole.is_cut)]
        numbers = torch.from_numpy(np.stack([rows, windows.top, windows.left, windows.is_flipped, *holes]))
        row, top, left, is_flipped, *cuts = numbers.to(device, non_blocking=True)[:, :, None]  # (B, 1) each
        # Which pixel of the store is in each place.
        if device not in self.maps:
            arrays = self.rows, self.columns, np.arange(self.height), np.arange(self.width)
            self.maps[device] = tuple(torch.from_numpy(array).to(device) for array in arrays)
        sources_y, sources_x, y, x = self.maps[device]
        column = sources_x[left + torch.where(is_flipped > 0, self.width - 1 - x, x)]  # (B, w)
        line = (row * num_rows + sources_y[top + y]) * num_columns  # (B, h)
        # All of them, then the holes.
        pixels = store.view(-1, 3).index_select(0, (line[:, :, None] + column[:, None, :]).view(-1))
        images = pixels.view(len(rows), self.height, self.width, 3)
        for number, hole in enumerate(windows.holes):
            hole_top, hole_left, is_cut = cuts[3 * number : 3 * number + 3]
            in_rows = (y >= hole_top) & (y < hole_top + hole.height)  # (B, h)
            in_columns = (x >= hole_left) & (x < hole_left + hole.width) & (is_cut > 0)  # (B, w)
            images.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :])[..., None], hole.fill)
        return images

    def gather_by_run(self, store: Tensor, rows: np.ndarray, windows: Windows) -> Tensor:
        """By runs of pixels, one short copy per row of a window, which processors are fast at. -> (b, h, w, 3)

        A run that leaves its image begins in the row before it or ends in the row after it; those columns are then
        replaced by the reflected ones.
        """
        num_images, num_rows, num_columns = len(rows), store.shape[1], store.shape[2]
        if (self.height, self.width) == (num_rows, num_columns) == (len(self.rows), len(self.columns)):
            return flip_and_cut(store.index_select(0, torch.from_numpy(rows)), windows)
        pixels = store.view(-1)
        if len(pixels) // 3 < self.width:
            return self.gather_by_pixel(store, rows, windows)
        # Every run of the window's width is a row of a view that overlaps itself.
        runs = pixels.as_strided((len(pixels) // 3 - self.width + 1, self.width * 3), (3, 1))
        line = rows[:, None] * num_rows + self.rows[windows.top[:, None] + np.arange(self.height)]  # (b, h)
        starts = (line * num_columns + (windows.left - self.padding)[:, None]).reshape(-1)
        inside = starts.clip(0, len(runs) - 1)
        images = runs.index_select(0, torch.from_numpy(inside)).view(num_images, self.height, self.width, 3)
        # Rows that would begin before the first pixel of the store, or end after the last one.
        for place in np.flatnonzero(inside != starts):
            image, y = divmod(int(place), self.height)
            sources = self.columns[windows.left[image] + np.arange(self.width)]
            images[image, y] = store.view(-1, num_columns, 3)[int(line[image, y])][torch.from_numpy(sources)]
        # Columns beside the image.
        if self.is_reflected.any():
            as_pixels = images.numpy().view("V3")[..., 0]  # (b, h, w), three bytes each
            image, column = np.nonzero(self.is_reflected[windows.left])
            as_pixels[image, :, column] = as_pixels[image, :, self.sources[windows.left[image], column]]
        return flip_and_cut(images, windows)


def flip_and_cut(images: Tensor, windows: Windows) -> Tensor:
    """The flips and holes of `windows`, perhaps in place. (b, h, w, 3) uint8 on the CPU."""
    chosen = np.flatnonzero(windows.is_flipped)
    if len(chosen) == len(images):
        images = images.permute(0, 3, 1, 2).flip(-1).permute(0, 2, 3, 1)
    elif len(chosen):
        # In the layout of channels_last, in which torch's flip moves many pixels at a time.
        mirrored = images.index_select(0, torch.from_numpy(chosen)).permute(0, 3, 1, 2).flip(-1)
        images.numpy()[chosen] = mirrored.permute(0, 2, 3, 1).numpy()
    for hole in windows.holes:
        for image in np.flatnonzero(hole.is_cut).tolist():
            top, left = int(hole.top[image]), int(hole.left[image])  # < 0 where the hole is larger than the image
            images[image, max(0, top) : top + hole.height, max(0, left) : left + hole.width] = hole.fill
    return images


class FusedResizedCrop:
    """A RandomResizedCrop, and the gather of what comes after it. On the CPU alone."""

    def __init__(self, arguments: Arguments, height: int, width: int, rest: FusedGather):
        self.arguments = arguments
        self.height = height  # of the base images
        self.width = width
        self.rest = rest

    def pieces(self, store: Tensor, rows: np.ndarray, draw_all: DrawAll) -> Pieces:
        """See FusedGather.pieces."""
        boxes = draw_boxes(self.height, self.width, self.arguments, lambda stream: draw_all([f"0{stream}"])[0])
        windows = self.rest.draw_windows(len(rows), draw_all)
        height, width = self.arguments["size"]
        for part in cut(len(rows), self.rest.height * self.rest.width * 3):
            images = resize_boxes(store, rows[part], boxes[:, part], height, width)
            yield part, self.rest.gather_by_run(images, np.arange(len(images)), windows.select(part))


def cut(num_images: int, image_bytes: int) -> Iterator[slice]:
    """The slices of a batch whose images take PIECE bytes at most, or one image each."""
    size = max(1, PIECE // image_bytes)
    return (slice(start, min(start + size, num_images)) for start in range(0, num_images, size))


# --- what can be fused ----------------------------------------------------------------------------------


def fuse(
    transforms: list[BatchTransform], height: int, width: int, im_sz: int, on_cpu: bool
) -> FusedGather | FusedResizedCrop | None:
    """`transforms` of base images of height x width and the centre crop to im_sz, as one gather; None: impossible.

    Possible: padding, then crops and flips in any order, then holes; on the CPU also after a RandomResizedCrop.
    """
    first = transforms[0] if transforms else None
    if first and first.function is resized_crop_batch and on_cpu:
        out_height, out_width = first.arguments["size"]
        rest = _fuse_windows(transforms, out_height, out_width, im_sz, start=1)
        return rest and FusedResizedCrop(first.arguments, height, width, rest)
    return _fuse_windows(transforms, height, width, im_sz)


def _fuse_windows(
    transforms: list[BatchTransform], height: int, width: int, im_sz: int, start: int = 0
) -> FusedGather | None:
    """The gather of transforms[start:], which keep their numbers in the pipeline."""
    fused = FusedGather(height, width)
    for number, transform in enumerate(transforms[start:], start):
        add = ADD.get(transform.function)
        if add is None or not add(fused, transform.arguments, number):
            return None
    if min(fused.height, fused.width) < im_sz or not fused.add_crop(im_sz, im_sz, []):
        return None
    return fused if fused.finish() else None


ADD: dict[BatchFunction, Callable[[FusedGather, Arguments, int], bool]] = {
    pad_batch: FusedGather.add_padding,
    crop_batch: FusedGather.add_random_crop,
    center_crop_batch: FusedGather.add_center_crop,
    flip_batch: FusedGather.add_flip,
    cutout_batch: FusedGather.add_cutout,
}


# --- threads ------------------------------------------------------------------------------------------


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread within the block: on small pieces, more would wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
