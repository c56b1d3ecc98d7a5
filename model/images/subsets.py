"""Parts of a split: a valid split cut off train, and a limited number of training images."""

import itertools

import numpy as np

from model.images.dealing import find_units, set_aside
from model.images.index import by_class
from model.images.source import Source, subset
from utils import UserError, key64


def split_by_content(source: Source, fraction: float) -> np.ndarray:
    """(N,) True for valid: of each class the files with the smallest digests, so that names do not matter.

    Identical files of a class stay together, unless it has no other files. Each side gets at least one file.
    Where files have groups, whole groups are set aside.
    """
    labels, classes = source.index.labels, source.index.classes
    if source.index.is_grouped:
        return _split_by_group(source, fraction)
    is_valid = np.zeros(len(labels), bool)
    positions, bounds = by_class(labels, len(classes))
    for label, name in enumerate(classes):
        members = positions[bounds[label] : bounds[label + 1]]
        if len(members) < 2:
            raise UserError(f"class {name!r} has one image; two are needed to set a validation part aside")
        keys = source.content_keys(members)
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        members, ordered = members[order], keys[order]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        # Move the cut to the nearest place where another content begins.
        starts = np.flatnonzero((ordered[1:] != ordered[:-1]).any(axis=1)) + 1
        if len(starts):
            count = starts[np.argmin(np.abs(starts - count))]
        is_valid[members[:count]] = True
    return is_valid


def _split_by_group(source: Source, fraction: float) -> np.ndarray:
    """(N,) True for valid. A class that is in one group alone stays in train. UserError when nothing can be spared."""
    index = source.index
    assert index.groups is not None
    units = find_units(index.groups, source.content_keys())
    is_valid = set_aside(units, index.labels, len(index.classes), fraction)
    if not is_valid.any():
        raise UserError(
            f"valid_fraction: the groups ({units.max() + 1}) leave nothing to validate with: each has the only images "
            "of a class; two groups of a class are needed"
        )
    return is_valid


def limit(source: Source, number: float, seed: int) -> Source:
    """`number` images (an int) or that fraction of them (a float), at random, in the proportions of the classes.

    Each class keeps at least one. A larger number keeps everything that a smaller one does. Where files have groups,
    whole groups are kept, and the number is the nearest that they make.
    """
    num = len(source.index)
    count = min(num, number if isinstance(number, int) else max(1, round(number * num)))
    num_classes = len(source.index.classes)
    if count < num_classes:
        raise UserError(f"limit_train: {count} images for {num_classes} classes; at least one of each is needed")
    order = np.random.Generator(np.random.Philox(key=key64(seed, "limit"))).permutation(num)
    if source.index.is_grouped:
        return _limit_groups(source, order, count)
    place = _find_places(source.index.labels[order], num_classes)
    mask = np.zeros(num, bool)
    mask[order[np.argsort(place, kind="stable")[:count]]] = True
    return subset(source, mask, source.index.split)


def _find_places(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(N,) the rank of each image in its class over the size of the class; the first of each class goes before all."""
    positions, bounds = by_class(labels, num_classes)
    place = np.empty(len(labels))
    for start, end in itertools.pairwise(bounds.tolist()):
        members = positions[start:end]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
        place[members[:1]] = -1
    return place


def _limit_groups(source: Source, order: np.ndarray, count: int) -> Source:
    """Whole groups at random, as many images as come nearest to `count`. A group's place is the mean of its images'."""
    index = source.index
    assert index.groups is not None
    # Groups in random order, and the places of their images, group after group.
    units = np.unique(index.groups, return_inverse=True)[1].reshape(-1)
    rank = np.empty(units.max() + 1, np.int64)
    rank[units[order][::-1]] = np.arange(len(order))[::-1]  # that of the first image of each
    images = np.argsort(rank[units], kind="stable")
    place = _find_places(index.labels[images], len(index.classes))
    sums = np.bincount(units[images], np.maximum(place, 0))
    sizes = np.bincount(units)
    mean = sums / sizes
    mean[units[images[place < 0]]] -= 1  # a group with the first image of a class goes before all
    # The groups that come nearest; at least those with the first images.
    groups = np.lexsort((rank, mean))
    totals = np.cumsum(sizes[groups])
    num_groups = max(int(np.argmin(np.abs(totals - count))) + 1, int((mean < 0).sum()))
    is_kept = np.zeros(len(sizes), bool)
    is_kept[groups[:num_groups]] = True
    part = subset(source, is_kept[units], index.split)
    text = f"whole groups: {len(part.index)} images of {num_groups} groups, where limit_train asks for {count}"
    part.note = "; ".join(filter(None, [part.note, text]))
    return part
