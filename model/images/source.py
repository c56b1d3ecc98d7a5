"""One split before anything is loaded in batches: its files, their digests, and where their base images are.

A base image is a file decoded and resized to (S, S, 3) uint8, before any augmentation.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from model.images import cache
from model.images.cached.intact import CheckedImages
from model.images.decode import ImageError, base_image, read_bytes, read_image
from model.images.index import Index
from model.images.paths import BLOCK, split_block, to_nfc
from model.images.reading import digest_of


class FoldAssignment(TypedDict):
    """Which image is in which of `k` parts: equal for all experiments with the same data and `k`."""

    k: int
    images: int  # number of them
    data: str  # digest of all images
    parts_digest: str  # of the images and the part of each
    counts: dict[str, list[int]]  # class -> number of its images in each part
    parts: NotRequired[dict[str, int]]  # path below the dataset folder -> its part, from 1 on


class FoldRecord(FoldAssignment):
    """The record of one experiment: the assignment, and which part validates."""

    fold: list[int]  # [i, k]


class StoredImages(Protocol):
    """Base images that are kept decoded: an array (M, S, S, 3) uint8, or two of them."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray: ...


class StoredJpegs(Protocol):
    """Base images that are kept as JPEGs and decoded each time."""

    def read(self, row: int, out: np.ndarray) -> None: ...


@dataclass
class JoinedImages:
    """Two folders' stored images as one; nothing is copied before it is read."""

    first: StoredImages
    second: StoredImages
    num_first: int
    size: int

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(B,) rows -> (B, S, S, 3), a copy."""
        out = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        is_second = rows >= self.num_first
        out[~is_second] = self.first[rows[~is_second]]
        out[is_second] = self.second[rows[is_second] - self.num_first]
        return out


@dataclass
class JoinedJpegs:
    """Two folders' stored JPEGs as one."""

    first: StoredJpegs
    second: StoredJpegs
    num_first: int

    def read(self, row: int, out: np.ndarray) -> None:
        """Image `row` into `out` (S, S, 3) uint8."""
        if row < self.num_first:
            self.first.read(row, out)
        else:
            self.second.read(row - self.num_first, out)


def ignore_position(position: int) -> None:
    """The default `begin` of `Source.read`: does nothing."""


@dataclass
class Source:
    """One split. Image i of it is row `cache_rows[i]` of `digests`, `images` and `jpegs`.

    These may cover more files than the split, for example all of train before valid was split off.
    """

    index: Index
    digests: np.ndarray  # (M, 16) uint8
    images: StoredImages | None  # (M, S, S, 3) uint8 when they are kept decoded
    cache_rows: np.ndarray  # (N,) row of each file's digest and base image
    size: int  # S, in pixels
    resize: str
    form: str  # disk, ram, jpeg or off
    note: str = ""  # why it is not the form that was asked for
    skipped: tuple[str, ...] = ()  # files that cannot be used
    jpegs: StoredJpegs | None = None  # in form jpeg, instead of `images`
    fold: FoldRecord | None = None  # when the split is a part of a k-fold cross-validation

    def read(self, positions: np.ndarray, begin: Callable[[int], None] = ignore_position) -> np.ndarray:
        """(B, S, S, 3) base images, a copy. ImageError when a file has disappeared or changed since it was listed.

        `begin` is called with each position before its file is decoded.
        """
        if self.images is not None:
            return self.images[self.cache_rows[positions]]
        images = np.empty((len(positions), self.size, self.size, 3), np.uint8)
        for image, position in zip(images, positions.tolist(), strict=True):
            begin(position)
            if self.jpegs:
                self.jpegs.read(int(self.cache_rows[position]), image)
            else:
                path = self.index.root / self.index.paths[position]
                self._check_unchanged(path, position)
                image[:] = base_image(read_image(path), self.size, self.resize)
        return images

    def _check_unchanged(self, path: Path, position: int) -> None:
        """ImageError when a file no longer has the content of which the run recorded the digest."""
        try:
            ctime = os.stat(path).st_ctime_ns
        except OSError:
            return  # reading it says what is wrong
        if ctime == self.index.ctimes[position]:
            return
        if digest_of(read_bytes(path)) != self.digests[self.cache_rows[position]].tobytes():
            raise ImageError(f"{path}: the file has changed since its dataset was opened")

    def fingerprint(self) -> str:
        """Digest of relative name, size, label and content of all files; a plain copy of a dataset has the same.

        SHA-256 of two digests: of all names (NFC, UTF-8) without anything between them; and, 65,536 files at a time,
        of the lengths of the names (uint16), the sizes (int64), labels (int32) and content digests, little-endian.
        The order is that of the index, which sorts by name: file system and Unicode form do not matter. Lossy pixels
        are other data, so that a run cannot change to them, or back, unnoticed. All folds have the same fingerprint.
        Which images are of one group, and their weights, are in it where there are groups and weights.
        """
        if self.fold:
            return self.fold["data"]
        index = self.index
        names = hashlib.sha256()
        columns = hashlib.sha256()
        for number, (block, lengths) in enumerate(index.paths.blocks()):
            if not block.isascii():
                composed = [
                    to_nfc(os.fsdecode(name)).encode("utf-8", "surrogateescape") for name in split_block(block, lengths)
                ]
                block, lengths = b"".join(composed), np.array(list(map(len, composed)))
            names.update(block)
            part = slice(number * BLOCK, (number + 1) * BLOCK)
            for column, kind in ((lengths, "<u2"), (index.sizes[part], "<i8"), (index.labels[part], "<i4")):
                columns.update(column.astype(kind).data)
            columns.update(self.digests[self.cache_rows[part]].data)
        lossy = f"jpeg {cache.JPEG_QUALITY}" if self.jpegs else ""
        groups = index.group_digest() if index.is_grouped else b""
        weights = b"" if index.weights is None else hashlib.sha256(index.weights.astype("<f8").data).digest()
        return hashlib.sha256(names.digest() + columns.digest() + lossy.encode() + groups + weights).hexdigest()

    def content_keys(self, positions: np.ndarray | slice = slice(None)) -> np.ndarray:
        """(n, 2) uint64: the digests of the files at `positions` as pairs of numbers that sort as the digests do."""
        return self.digests[self.cache_rows[positions]].view(">u8").astype(np.uint64)

    def class_counts(self) -> list[int]:
        return np.bincount(self.index.labels, minlength=len(self.index.classes)).tolist()


def subset(source: Source, mask: np.ndarray, split: str) -> Source:
    """The files of `source` where `mask` (N,) is true, as `split`."""
    index = source.index.select(mask, split)
    # What was ignored and skipped is reported once, by the part that keeps the name of the split.
    keeps_name = split == source.index.split
    if keeps_name:
        index.ignored = source.index.ignored
    part = Source(
        index,
        source.digests,
        source.images,
        source.cache_rows[mask],
        source.size,
        source.resize,
        source.form,
        source.note,
        skipped=source.skipped if keeps_name else (),
        fold=source.fold,
    )
    if source.jpegs and split == "train":
        part.jpegs = source.jpegs
    elif source.jpegs:
        part.form = "off"
        part.note = "not cached: the jpeg cache is lossy, and for training alone"
    return part


def join(first: Source, second: Source) -> Source:
    """The files of both as one Source called train, in the order in which the folders list them."""
    is_same_folder = first.digests is second.digests  # one was cut off the other
    digests, images, jpegs = first.digests, first.images, first.jpegs
    num_first = 0
    if not is_same_folder:
        num_first = len(first.digests)
        digests = np.concatenate([first.digests, second.digests])
        images = jpegs = None
        if first.images is not None and second.images is not None:
            images = JoinedImages(first.images, second.images, num_first, first.size)
        if first.jpegs and second.jpegs:
            jpegs = JoinedJpegs(first.jpegs, second.jpegs, num_first)
    cache_rows = np.concatenate([first.cache_rows, second.cache_rows.astype(np.int64) + num_first])
    order = np.argsort(cache_rows, kind="stable")
    both = first.index + second.index
    index = both.select(order, "train")
    index.ignored = both.ignored
    return Source(
        index,
        digests,
        images,
        cache_rows[order],
        first.size,
        first.resize,
        first.form if images is not None or jpegs else "off",
        first.note or second.note,
        skipped=first.skipped + second.skipped,
        jpegs=jpegs,
    )


def mean_and_std(source: Source, chunk: int = 256) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, of pixels in [0, 1].

    Exact integer sums over up to 20,000 evenly spaced images (2,000 when they have to be decoded).
    """
    num = len(source.index)
    most = 20_000 if source.images is not None else 2_000
    positions = np.linspace(0, num - 1, min(most, num)).astype(int)
    if isinstance(source.images, CheckedImages):
        source.images.are_intact(source.cache_rows[positions])  # all at once, which several threads can do
    total = np.zeros(3, np.int64)
    squares = np.zeros(3, np.int64)
    for first in range(0, len(positions), chunk):
        images = source.read(positions[first : first + chunk])
        lines = images.reshape(-1, source.size * 3)  # (B * S, S * 3): long rows sum faster than three columns
        total += lines.sum(0, dtype=np.int64).reshape(-1, 3).sum(0)
        squares += np.square(lines, dtype=np.uint16).sum(0, dtype=np.int64).reshape(-1, 3).sum(0)
    count = len(positions) * source.size**2
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0)) / 255
    return [round(value, 6) for value in (mean / 255).tolist()], [round(max(value, 1e-3), 6) for value in std.tolist()]
