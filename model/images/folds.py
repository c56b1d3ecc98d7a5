"""k-fold cross-validation: the images of train and valid together, dealt into k parts of which one validates.

The parts are a function of what the files hold and of k: neither the seed nor a name, order or folder counts, so
that all experiments with the same k share them. The caches of both folders are used as they are.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.images import cache
from model.images.index import Index, Paths
from model.images.source import Source, image_folder, subset
from params import Params
from utils import UserError

MOST_LISTED = 2_000  # images whose parts are written down in each experiment


class Joined:
    """The base images that two folders keep, as those of one; nothing is copied before it is read."""

    def __init__(self, first: Any, second: Any, num_first: int):
        self.first, self.second, self.num_first = first, second, num_first

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(B,) rows -> (B, S, S, 3), a copy; of arrays."""
        out = np.empty((len(rows), *self.first.shape[1:]), np.uint8)
        is_second = rows >= self.num_first
        out[~is_second] = self.first[rows[~is_second]]
        out[is_second] = self.second[rows[is_second] - self.num_first]
        return out

    def read(self, row: int, out: np.ndarray) -> None:
        """Image `row` into `out` (S, S, 3) uint8; of JPEGs."""
        if row < self.num_first:
            self.first.read(row, out)
        else:
            self.second.read(row - self.num_first, out)


def take(sources: dict[str, Source], fold: Sequence[int]) -> dict[str, Source]:
    """`sources`, with the part i of `fold`, [i, k], as valid and the others as train.

    UserError when the images are too few for k parts.
    """
    number, k = fold
    whole = join(sources["train"], sources["valid"])
    parts = deal(whole, k)
    record: dict[str, Any] = {"fold": [number, k]} | describe(whole, parts, k)
    if len(parts) <= MOST_LISTED:
        record["parts"] = listing(whole, parts)
    is_valid = parts == number
    taken = {"train": subset(whole, ~is_valid, "train"), "valid": subset(whole, is_valid, "valid")}
    scarce = [name for name, counts in record["counts"].items() if not min(counts)]
    missing = f"classes with too few images for every part: {', '.join(scarce[:5])}" if scarce else ""
    for split, source in taken.items():
        source.fold = record
        notes = [f"fold {number} of {k}", missing if split == "valid" else "", source.note]
        source.note = "; ".join(filter(None, notes))
    return sources | taken


def fold_assignment(data_dir: Path, params: Params, k: int, cache_dir: Path | str | None = None) -> dict[str, Any]:
    """{"k", "images", "data", "digest", "counts": {class: [images in each part]}, "parts": {path: part from 1 on}}.

    What every experiment with [i, k] as its fold has, whatever i and the seed. Builds the caches that they will use.
    UserError as `take`.
    """
    where = Path(cache_dir) if cache_dir else cache.default_dir(data_dir)
    sources, _ = image_folder(["train", "valid"], data_dir, params, None, where)
    whole = join(sources["train"], sources["valid"])
    parts = deal(whole, k)
    return describe(whole, parts, k) | {"parts": listing(whole, parts)}


def deal(whole: Source, k: int) -> np.ndarray:
    """(N,) the part, from 1 on, of each image; parts differ by one content at most, in each class and in all.

    Files of the same content are one card: they go to the same part, whatever their class. The parts are as large as
    scikit-learn's StratifiedKFold makes them; its import would take a second of each start. UserError: too few images.
    """
    index = whole.index
    halves = whole.digests[whole.rows].view(">u8").astype(np.uint64)  # (N, 2), most significant first
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # by content; equal ones in the order of the index
    is_new = np.ones(len(order), bool)
    is_new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    content = np.empty(len(order), np.int64)
    content[order] = np.cumsum(is_new) - 1
    labels = index.labels[order[is_new]]  # of each content
    parts = np.empty(len(labels), np.int64)
    parts[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % k + 1
    dealt = parts[content]
    if len(labels) < k:
        raise UserError(f"fold: {k} parts given; {len(labels)} different images make at most {len(labels)}")
    for name, of_class in zip(index.classes, _counts(index, dealt, k), strict=True):
        if of_class.max() == of_class.sum():
            raise UserError(f"fold: class {name!r} would be in one part alone; it needs two different images at least")
    return dealt


def _counts(index: Index, parts: np.ndarray, k: int) -> np.ndarray:
    """(K, k) images of each class in each part."""
    num_classes = len(index.classes)
    return np.bincount(index.labels * k + (parts - 1), minlength=num_classes * k).reshape(num_classes, k)


def describe(whole: Source, parts: np.ndarray, k: int) -> dict[str, Any]:
    """How many images of each class are in each part, and digests: of all images, and of who is in which part."""
    index, data = whole.index, whole.fingerprint()
    digest = hashlib.sha256(data.encode() + parts.astype("<i4").tobytes()).hexdigest()
    counts = dict(zip(index.classes, _counts(index, parts, k).tolist(), strict=True))
    return {"k": k, "images": len(index), "data": data, "digest": digest, "counts": counts}


def listing(whole: Source, parts: np.ndarray) -> dict[str, int]:
    """Path, below the dataset folder, -> part. Bytes that are no UTF-8 are escaped as \\xNN."""
    names = (os.fsencode(path).decode("utf-8", "backslashreplace") for path in whole.index.paths)
    return dict(zip(names, parts.tolist(), strict=True))


def join(first: Source, second: Source) -> Source:
    """The files of both as one Source, called train, in the order in which the folders list them."""
    one, other = first.index, second.index
    is_one = first.digests is second.digests  # one was cut off the other
    digests, images, jpegs, shift = first.digests, first.images, first.jpegs, 0
    if not is_one:
        shift = len(first.digests)
        digests = np.concatenate([first.digests, second.digests])
        has_images = images is not None and second.images is not None
        images = Joined(images, second.images, shift) if has_images else None
        jpegs = Joined(jpegs, second.jpegs, shift) if jpegs and second.jpegs else None
    rows = np.concatenate([first.rows, second.rows.astype(np.int64) + shift])
    order = np.argsort(rows, kind="stable")
    pairs = [(one.labels, other.labels), (one.sizes, other.sizes), (one.mtimes, other.mtimes)]
    labels, sizes, mtimes = (np.concatenate(pair)[order] for pair in pairs)
    paths, ignored = _joined_paths(one.paths, other.paths)[order], one.ignored + other.ignored
    index = Index(one.root, "train", one.classes, paths, labels, sizes, mtimes, ignored)
    form = first.form if images is not None or jpegs else "off"
    return Source(index, digests, images, rows[order], first.size, first.resize, form, first.note or second.note,
                  first.skipped + second.skipped, jpegs)  # fmt: skip


def _joined_paths(one: Paths, other: Paths) -> Paths:
    lengths = np.concatenate([one.lengths, other.lengths])
    if one.names is other.names:
        return Paths(one.names, np.concatenate([one.starts, other.starts]), lengths)
    return Paths(
        b"".join([one.names, other.names]), np.concatenate([one.starts, other.starts + len(one.names)]), lengths
    )
