"""Which images of a source train, validate and test: what the source says is kept, and what is missing is made."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.images.build.items import BuildOptions, Item, Remarks
from model.images.dealing import describe_share, find_units, set_aside
from model.images.reading import digest_of
from utils import UserError, key64

TEST_FRACTION = 0.15  # of a source without any split, unless --test_fraction says another


def make_splits(items: Sequence[Item], options: BuildOptions, remarks: Remarks) -> None:
    """Give every item a split: first a part is set aside as test, then a part of the rest as valid.

    UserError when a split is asked for that the source has.
    """
    has_splits = any(item.split for item in items)
    for item in items:
        item.split = item.split or "train"
    check_groups(items)
    fraction = options.test_fraction
    if fraction is None and not has_splits:
        fraction = TEST_FRACTION
    for split, share in (("test", fraction), ("valid", options.valid_fraction)):
        if share:
            remarks += split_off(items, share, split)
    present = {item.split for item in items}
    if "test" in present and not has_splits and options.test_fraction is None:
        remarks.append(
            f"the source has no splits: {fraction:.0%} of each class are set aside as test; --test_fraction 0: none"
        )
    if "valid" not in present:
        remarks.append("no valid split: train.py splits a part off train")
    if "test" not in present:
        remarks.append("no test split: evaluate.py can look at --split valid")


def check_groups(items: Sequence[Item]) -> None:
    """UserError when the source has a group in two splits."""
    split_of: dict[str, str] = {}
    shared = {
        item.group: (split_of[item.group], item.split)
        for item in items
        if item.group and split_of.setdefault(item.group, item.split) != item.split
    }
    if shared:
        group, (one, other) = next(iter(shared.items()))
        raise UserError(
            f"{len(shared)} of {len(split_of)} groups of the source are in two splits, for example {group!r} in {one} "
            f"and {other}; a group must be in one split: correct the splits or the groups"
        )


def split_off(items: Sequence[Item], fraction: float, split: str) -> Remarks:
    """Move a part of train to `split`, of each class, by content; whole groups where there are groups.

    UserError when the source has that split, or groups leave nothing to move.
    """
    if any(item.split == split for item in items):
        raise UserError(f"--{split}_fraction: the source has a {split} split already; leave it out")
    members = [item for item in items if item.split == "train"]
    if _are_grouped(members):
        return _split_off_groups(members, fraction, split)
    for label in {item.label for item in members}:
        keyed = sorted(
            ((_content_key(item), item) for item in members if item.label == label), key=lambda pair: pair[0]
        )
        keys = [key for key, _ in keyed]
        count = max(1, round(fraction * len(keyed)))
        # Equal contents stay together, and train keeps some.
        ends = [place for place in range(1, len(keys)) if keys[place] != keys[place - 1]]
        later = [place for place in ends if place >= count]
        count = min(later) if later else max(ends, default=0)
        for _, item in keyed[:count]:
            item.split = split
    return []


def _are_grouped(items: Sequence[Item]) -> bool:
    groups = [item.group for item in items if item.group]
    return len(set(groups)) < len(groups)


def _split_off_groups(members: Sequence[Item], fraction: float, split: str) -> Remarks:
    """Whole groups, in the proportions of the classes as far as groups allow."""
    if not members:
        return []
    # Images without a group are groups of their own.
    names = [item.group or str(number) for number, item in enumerate(members)]
    named = [(bool(item.group), name) for item, name in zip(members, names, strict=True)]
    number_of = {name: number for number, name in enumerate(dict.fromkeys(named))}
    groups = np.array([number_of[name] for name in named])
    classes = sorted({item.label for item in members})
    labels = np.array([classes.index(item.label) for item in members])
    keys = np.frombuffer(b"".join(digest_of(_content(item)) for item in members), ">u8").reshape(-1, 2)
    is_moved = set_aside(find_units(groups, keys.astype(np.uint64)), labels, len(classes), fraction)
    if not is_moved.any():
        raise UserError(
            f"--{split}_fraction {fraction:g}: each group has the only images of a class, so none can be set aside as "
            f"{split}; give 0, or other groups"
        )
    for item, moves in zip(members, is_moved.tolist(), strict=True):
        item.split = split if moves else item.split
    return [describe_share(is_moved, labels, classes, fraction, split)]


def _content(item: Item) -> bytes:
    return item.source.read_bytes() if isinstance(item.source, Path) else item.source.tobytes()


def _content_key(item: Item) -> int:
    """A number that is a function of the content."""
    data = _content(item)
    return key64(str(len(data)), data.hex())
