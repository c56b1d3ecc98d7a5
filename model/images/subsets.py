"""Parts of a split: a valid split cut off train, and a limited number of training images."""

import itertools

import numpy as np

from model.images.index import by_class
from model.images.source import Source, subset
from utils import UserError, key64


def split_by_content(source: Source, fraction: float) -> np.ndarray:
    """(N,) True for valid: of each class the files with the smallest digests, so that names do not matter.

    Identical files of a class stay together, unless it has no other files. Each side gets at least one file.
    """
    labels, classes = source.index.labels, source.index.classes
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


def limit(source: Source, number: float, seed: int) -> Source:
    """`number` images (an int) or that fraction of them (a float), at random, in the proportions of the classes.

    Each class keeps at least one. A larger number keeps everything that a smaller one does.
    """
    num = len(source.index)
    count = min(num, number if isinstance(number, int) else max(1, round(number * num)))
    num_classes = len(source.index.classes)
    if count < num_classes:
        raise UserError(f"limit_train: {count} images for {num_classes} classes; at least one of each is needed")
    order = np.random.Generator(np.random.Philox(key=key64(seed, "limit"))).permutation(num)
    positions, bounds = by_class(source.index.labels[order], num_classes)
    # An image's place is its rank in its class over the size of the class; the first of each class goes before all.
    place = np.empty(num)
    for start, end in itertools.pairwise(bounds.tolist()):
        members = positions[start:end]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
        place[members[0]] = -1
    mask = np.zeros(num, bool)
    mask[order[np.argsort(place, kind="stable")[:count]]] = True
    return subset(source, mask, source.index.split)
