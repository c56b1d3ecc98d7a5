"""k-fold cross-validation: the images of train and valid together are divided into k parts, of which one validates.

The parts are a function of the files' contents, of which of them are one group, and of k: neither the seed nor names,
order or folders matter, so that all experiments with the same k share them. Both folders' caches are used as they are.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.images import cache
from model.images.dealing import deal_folds, describe_folds, find_units
from model.images.image_folder import image_folder
from model.images.index import Index
from model.images.source import FoldAssignment, FoldRecord, Source, join, subset
from params import Params
from utils import UserError

MOST_LISTED = 2_000  # up to this number of images, the part of each is written down in every experiment


def take_fold(sources: dict[str, Source], fold: Sequence[int]) -> dict[str, Source]:
    """`sources`, with part i of `fold`, [i, k], as valid and the others as train.

    UserError when there are too few images for k parts.
    """
    number, k = fold
    whole = join(sources["train"], sources["valid"])
    parts = assign_parts(whole, k)
    assignment = describe(whole, parts, k)
    if len(parts) <= MOST_LISTED:
        assignment["parts"] = list_parts(whole, parts)
    record: FoldRecord = {"fold": [number, k], **assignment}
    is_valid = parts == number
    taken = {"train": subset(whole, ~is_valid, "train"), "valid": subset(whole, is_valid, "valid")}
    scarce = [name for name, counts in record["counts"].items() if not min(counts)]
    missing = f"classes with too few images for every part: {', '.join(scarce[:5])}" if scarce else ""
    balance = describe_folds(parts, whole.index.labels, whole.index.classes, k) if whole.index.is_grouped else ""
    for split, source in taken.items():
        source.fold = record
        notes = [f"fold {number} of {k}", balance, missing if split == "valid" else "", source.note]
        source.note = "; ".join(filter(None, notes))
    return sources | taken


def fold_assignment(data_dir: Path, params: Params, k: int, cache_dir: Path | str | None = None) -> FoldAssignment:
    """The parts that every experiment with [i, k] as its fold has, whatever i and the seed; with the part of each file.

    Builds the caches that these experiments will use. UserError when there are too few images for k parts.
    """
    where = Path(cache_dir) if cache_dir else cache.default_dir(data_dir)
    sources, _ = image_folder(["train", "valid"], data_dir, params, None, where)
    whole = join(sources["train"], sources["valid"])
    parts = assign_parts(whole, k)
    assignment = describe(whole, parts, k)
    assignment["parts"] = list_parts(whole, parts)
    return assignment


def assign_parts(whole: Source, k: int) -> np.ndarray:
    """(N,) the part, from 1 on, of each image. UserError when there are too few images.

    Files of equal content go to the same part, whatever their class, and so do the files of a group.
    """
    index = whole.index
    parts, num_units = _deal_groups(whole, k) if index.is_grouped else _deal_contents(whole, k)
    kind = "groups" if index.is_grouped else "different images"
    # Refuse what cannot be validated.
    if num_units < k:
        why = " (groups that share an equal image count as one)" if kind.startswith("groups") else ""
        raise UserError(f"fold: {k} parts given; {num_units} {kind} make at most {num_units}{why}")
    for name, counts in zip(index.classes, _count_parts(index, parts, k), strict=True):
        if counts.max() == counts.sum():
            raise UserError(f"fold: class {name!r} would be in one part alone; it needs two {kind} at least")
    return parts


def _deal_groups(whole: Source, k: int) -> tuple[np.ndarray, int]:
    """(N,) the part of each image, and the number of groups; those that share an image count as one."""
    index = whole.index
    assert index.groups is not None
    units = find_units(index.groups, whole.content_keys())
    return deal_folds(units, index.labels, len(index.classes), k), int(units.max()) + 1


def _deal_contents(whole: Source, k: int) -> tuple[np.ndarray, int]:
    """(N,) the part of each image, and the number of different images.

    In each class, and in all, the numbers of different contents differ by one at most between parts. The parts are as
    large as scikit-learn's StratifiedKFold makes them; importing it would take a second at each start.
    """
    index = whole.index
    # Number the different contents, in the order of their digests.
    keys = whole.content_keys()  # (N, 2)
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # equal contents in the order of the index
    is_new = np.ones(len(order), bool)
    is_new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    content = np.empty(len(order), np.int64)
    content[order] = np.cumsum(is_new) - 1
    # Go through the contents class by class and give them to the parts in turn.
    labels = index.labels[order[is_new]]  # (number of contents,)
    part_of_content = np.empty(len(labels), np.int64)
    part_of_content[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % k + 1
    return part_of_content[content], len(labels)


def _count_parts(index: Index, parts: np.ndarray, k: int) -> np.ndarray:
    """(K, k) number of images of each class in each part."""
    num_classes = len(index.classes)
    return np.bincount(index.labels * k + (parts - 1), minlength=num_classes * k).reshape(num_classes, k)


def describe(whole: Source, parts: np.ndarray, k: int) -> FoldAssignment:
    """The number of images of each class in each part, and digests of the images and of their parts."""
    index, data = whole.index, whole.fingerprint()
    digest = hashlib.sha256(data.encode() + parts.astype("<i4").tobytes()).hexdigest()
    counts = dict(zip(index.classes, _count_parts(index, parts, k).tolist(), strict=True))
    return {"k": k, "images": len(index), "data": data, "parts_digest": digest, "counts": counts}


def list_parts(whole: Source, parts: np.ndarray) -> dict[str, int]:
    """Path, below the dataset folder, -> part. Bytes that are not UTF-8 are escaped as \\xNN."""
    names = (os.fsencode(path).decode("utf-8", "backslashreplace") for path in whole.index.paths)
    return dict(zip(names, parts.tolist(), strict=True))
