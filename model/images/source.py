"""A dataset folder -> the images of each split that was asked for, before anything is loaded in batches.

Which file is in which split is decided here, and what the pixels' mean and standard deviation are.
"""

import hashlib
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.images import cache
from model.images.decode import ImageError, base_image, image_size, read_image
from model.images.index import BLOCK, Index, by_class, check_classes, cut, find_splits, index_split, nfc
from params import Params
from utils import UserError, key64

if TYPE_CHECKING:
    from model.images.folds import Joined


@dataclass
class Source:
    """One split: its files, their digests, and their base images when they are kept."""

    index: Index
    digests: np.ndarray  # (M, 16) uint8, of the whole folder
    images: "np.ndarray | Joined | None"  # (M, S, S, 3) uint8, of the whole folder
    rows: np.ndarray  # (N,) where each file's digest and image are in those
    size: int  # S
    resize: str
    form: str  # disk, ram, jpeg or off
    note: str = ""
    skipped: tuple[str, ...] = ()
    jpegs: "cache.Jpegs | Joined | None" = None  # of the whole folder, in form jpeg
    fold: dict[str, Any] | None = None  # what is said of a fold's parts, see model/images/folds.py

    def read(self, positions: np.ndarray, begin: Callable[[int], None] = lambda position: None) -> np.ndarray:
        """(B, S, S, 3) base images; a copy. ImageError when a file went away or broke meanwhile.

        `begin` is told of each position before its file is decoded.
        """
        if self.images is not None:
            return self.images[self.rows[positions]]
        images = np.empty((len(positions), self.size, self.size, 3), np.uint8)
        for image, position in zip(images, positions.tolist(), strict=True):
            begin(position)
            if self.jpegs:
                self.jpegs.read(self.rows[position], image)
            else:
                path = self.index.root / self.index.paths[position]
                image[:] = base_image(read_image(path), self.size, self.resize)
        return images

    def fingerprint(self) -> str:
        """Digest over relative name, size, label and content digest of the files; a plain copy has it too.

        SHA-256 over two of them: of all names (NFC, UTF-8) one behind the other; and, 65,536 files at a time, of
        the lengths of the names (uint16), the sizes (int64), labels (int32) and content digests, little-endian. The
        order is that of the index, which is one of names: neither a file system's order nor its unicode form counts.
        Lossy pixels are other data: a run cannot change to them, or back, unnoticed. All folds are of the same data.
        """
        if self.fold:
            return self.fold["data"]
        index, names, columns = self.index, hashlib.sha256(), hashlib.sha256()
        for number, (block, lengths) in enumerate(index.paths.blocks()):
            if not block.isascii():
                composed = [nfc(os.fsdecode(name)).encode("utf-8", "surrogateescape") for name in cut(block, lengths)]
                block, lengths = b"".join(composed), np.array(list(map(len, composed)))
            names.update(block)
            part = slice(number * BLOCK, (number + 1) * BLOCK)
            for column, kind in ((lengths, "<u2"), (index.sizes[part], "<i8"), (index.labels[part], "<i4")):
                columns.update(column.astype(kind))
            columns.update(self.digests[self.rows[part]])
        lossy = f"jpeg {cache.JPEG_QUALITY}" if self.jpegs else ""
        return hashlib.sha256(names.digest() + columns.digest() + lossy.encode()).hexdigest()

    def class_counts(self) -> list[int]:
        return np.bincount(self.index.labels, minlength=len(self.index.classes)).tolist()


def positions_type(num: int) -> type[np.unsignedinteger] | type[np.signedinteger]:
    """What holds `num` positions: half of int64 as long as it will do."""
    return np.uint32 if num <= 1 << 32 else np.int64


def base_size(im_sz: int) -> int:
    """The side of the images that are kept: room for a random crop above 64 px."""
    return im_sz if im_sz <= 64 else round(im_sz * 256 / 224)


def image_folder(
    splits: list[str], data_dir: Path, params: Params, im_sz: int | None, cache_dir: Path
) -> tuple[dict[str, Source], int]:
    """{train,valid,test}/CLASS/IMAGE -> {split: Source} for `splits`, and im_sz. No other image is opened.

    Names and labels of train are always listed: they say what the classes are, and `im_sz` when it is None.
    """
    folders = find_splits(data_dir)
    for split in splits:
        if split not in folders and split != "valid":
            raise UserError(f"{data_dir} has no {split} split; possible: {', '.join({**folders, 'valid': 0})}")
    listed = [split for split in folders if split in splits or split == "train"]
    indexes = {split: index_split(folders[split], split, data_dir) for split in listed}
    classes = indexes["train"].classes
    for split, index in indexes.items():
        check_classes(index.classes, classes, str(folders[split]), str(folders["train"]))
    if params.n_clas not in (None, len(classes)):
        shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
        raise UserError(f"n_clas: {params.n_clas} given, but {data_dir} has {len(classes)} classes: {shown}")
    im_sz = im_sz or params.im_sz or _native_size(indexes["train"])
    is_cut = "valid" not in folders  # valid is a part of train
    sources: dict[str, Source] = {}
    for split, index in indexes.items():
        if split in splits or (is_cut and "valid" in splits):
            sources[split] = _decode(index, params, im_sz, cache_dir)
    if is_cut and "train" in sources:
        whole = sources.pop("train")
        is_valid = _split_by_content(whole, params.valid_fraction)
        sources |= {"train": subset(whole, ~is_valid, "train"), "valid": subset(whole, is_valid, "valid")}
    return {split: sources[split] for split in splits}, im_sz


def _native_size(index: Index) -> int:
    """The median short side of up to 200 evenly spaced images when that is at most 64, else 224."""
    sides = []
    for position in np.linspace(0, len(index) - 1, min(200, len(index))).astype(int):
        try:
            sides.append(min(image_size(index.root / index.paths[position])))
        except ImageError:
            continue
    side = int(np.median(sides)) if sides else 224
    return max(8, side) if side <= 64 else 224


def _decode(index: Index, params: Params, im_sz: int, cache_dir: Path) -> Source:
    size = base_size(im_sz)
    trains = index.split == "train" or (index.split == "valid" and params.fold is not None)
    is_lossy = params.cache == "jpeg" and trains  # what is evaluated is exact
    wanted = "auto" if params.cache == "jpeg" and not is_lossy else params.cache
    found = cache.open_decoded(index, size, params.resize, wanted, cache_dir)
    if found.bad and params.on_bad_image == "error":
        reasons = "; ".join(list(found.bad.values())[:5]) + ("; ..." if len(found.bad) > 5 else "")
        raise UserError(
            f"{len(found.bad)} of {len(index)} {index.split} images cannot be used: {reasons}. "
            "Repair or remove them, or set on_bad_image to skip"
        )
    skipped = tuple(index.paths[position] for position in found.bad)
    rows = np.arange(len(index), dtype=positions_type(len(index)))
    rest = (size, params.resize, found.form, found.note, skipped, found.jpegs)
    whole = Source(index, found.digests, found.images, rows, *rest)
    if not skipped:
        return whole
    is_good = np.ones(len(index), bool)
    is_good[list(found.bad)] = False
    part = subset(whole, is_good, index.split)
    for name, count in zip(index.classes, part.class_counts(), strict=True):
        if not count:
            raise UserError(f"{index.split}: no image of class {name!r} can be used: {next(iter(found.bad.values()))}")
    return part


def subset(source: Source, mask: np.ndarray, split: str) -> Source:
    """The files of `source` where `mask` (N,) is true, as `split`."""
    index = source.index.select(mask, split)
    is_same = split == source.index.split  # what was left out is told once
    index.ignored = source.index.ignored if is_same else index.ignored
    rest = (source.digests, source.images, source.rows[mask], source.size, source.resize, source.form, source.note)
    part = Source(index, *rest, source.skipped if is_same else (), fold=source.fold)
    if source.jpegs and split == "train":
        part.jpegs = source.jpegs
    elif source.jpegs:
        part.form, part.note = "off", "not cached: the jpeg cache is lossy, and for training alone"
    return part


def _split_by_content(source: Source, fraction: float) -> np.ndarray:
    """(N,) True for valid: of each class the files with the smallest digests, so that names do not matter.

    Identical files of a class stay together, unless it has no other files; each side gets at least one.
    """
    labels, classes = source.index.labels, source.index.classes
    is_valid = np.zeros(len(labels), bool)
    positions, bounds = by_class(labels, len(classes))
    for label, name in enumerate(classes):
        members = positions[bounds[label] : bounds[label + 1]]
        if len(members) < 2:
            raise UserError(f"class {name!r} has one image; two are needed to set a validation part aside")
        halves = source.digests[source.rows[members]].view(">u8").astype(np.uint64)  # (n, 2), most significant first
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        members, ordered = members[order], halves[order]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        starts = np.flatnonzero((ordered[1:] != ordered[:-1]).any(axis=1)) + 1  # where another content begins
        if len(starts):
            count = starts[np.argmin(np.abs(starts - count))]
        is_valid[members[:count]] = True
    return is_valid


def limit(source: Source, number: float, seed: int) -> Source:
    """`number` images (an int) or that share of them (a float), at random, in the proportions of the classes.

    Each class keeps at least one. A larger number keeps all that a smaller one does.
    """
    num = len(source.index)
    count = min(num, number if isinstance(number, int) else max(1, round(number * num)))
    num_classes = len(source.index.classes)
    if count < num_classes:
        raise UserError(f"limit_train: {count} images for {num_classes} classes; at least one of each is wanted")
    order = np.random.Generator(np.random.Philox(key=key64(seed, "limit"))).permutation(num)
    positions, bounds = by_class(source.index.labels[order], num_classes)
    place = np.empty(num)
    for start, end in itertools.pairwise(bounds.tolist()):
        members = positions[start:end]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
        place[members[0]] = -1
    mask = np.zeros(num, bool)
    mask[order[np.argsort(place, kind="stable")[:count]]] = True
    return subset(source, mask, source.index.split)


def statistics(source: Source, chunk: int = 256) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, of pixels in [0, 1].

    Exact integer sums over up to 20,000 evenly spaced images (2,000 when they are not kept).
    """
    num = len(source.index)
    most = 20_000 if source.images is not None else 2_000
    positions = np.linspace(0, num - 1, min(most, num)).astype(int)
    total, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for at in range(0, len(positions), chunk):
        rows = source.read(positions[at : at + chunk]).reshape(-1, source.size * 3)  # long rows sum faster
        total += rows.sum(0, dtype=np.int64).reshape(-1, 3).sum(0)
        squares += np.square(rows, dtype=np.uint16).sum(0, dtype=np.int64).reshape(-1, 3).sum(0)
    count = len(positions) * source.size**2
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0)) / 255
    return [round(value, 6) for value in (mean / 255).tolist()], [round(max(value, 1e-3), 6) for value in std.tolist()]
