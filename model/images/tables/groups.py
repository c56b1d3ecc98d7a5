"""Groups of images (all pictures of one patient, of one camera) that stay on one side of every split."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.images.index import Index
from model.images.tables.rows import locate_images, read_table
from utils import UserError

GROUPS = "groups.csv"


@dataclass
class Groups:
    """The group of each image of a dataset. Images without one are groups of their own."""

    numbers: np.ndarray  # (N,) int64
    names: list[str]  # of the groups 0, 1, ...; those of images without a group have no name
    num_without: int  # images without a group

    def describe(self) -> str:
        """For example "20 of 3 to 6 images, 2 images without"."""
        sizes = np.bincount(self.numbers)[: len(self.names)]
        text = f"{len(sizes)} of {sizes.min()} to {sizes.max()} images" if len(sizes) else "none"
        return text + (f", {self.num_without} images without" if self.num_without else "")


def read_groups(data_dir: Path, positions: Mapping[str, int], left_out: Iterable[str]) -> list[str]:
    """The group of each image as groups.csv says, "" for none. UserError when it is damaged.

    `left_out`: images that labels.csv does not name; rows about them are passed over.
    """
    table = read_table(data_dir / GROUPS, ("path", "group"))
    others = {path: place for place, path in enumerate(left_out, len(positions))}
    named = [""] * (len(positions) + len(others))
    for position, group in zip(
        locate_images(table, {**positions, **others}, data_dir), table.texts("group"), strict=True
    ):
        named[position] = group
    return named[: len(positions)]


def agree(paths: Iterable[str], named: Sequence[str], column: Mapping[str, str], data_dir: Path) -> list[str]:
    """The groups of groups.csv, and where it names none, those of the column of labels.csv. UserError: they differ."""
    both = []
    for path, group in zip(paths, named, strict=True):
        other = column.get(path, "")
        if group and other and group != other:
            raise UserError(
                f"{data_dir / GROUPS}: {path!r} is of the group {group!r}, and of {other!r} in labels.csv; correct one "
                "of them, or leave the column group out of labels.csv"
            )
        both.append(group or other)
    return both


def number_groups(named: Sequence[str]) -> Groups:
    """Numbers for the names of groups, "" being no group."""
    numbers: dict[str, int] = {name: number for number, name in enumerate(dict.fromkeys(filter(None, named)))}
    array = np.array([numbers.get(name, -1) for name in named], np.int64)
    is_alone = array < 0
    array[is_alone] = len(numbers) + np.arange(is_alone.sum())
    return Groups(array, list(numbers), int(is_alone.sum()))


def check_sides(sides: Iterable[Sequence[Index]], groups: Groups, data_dir: Path) -> None:
    """UserError when a group has images on two sides. A side is one split, or those that are joined before a split."""
    side_of: dict[int, Index] = {}
    shared: dict[int, tuple[Index, Index]] = {}
    for side in sides:
        seen: dict[int, Index] = {}
        for index in side:
            assert index.groups is not None
            seen |= dict.fromkeys(np.unique(index.groups).tolist(), index)
        shared |= {group: (side_of[group], index) for group, index in seen.items() if group in side_of}
        side_of |= seen
    if shared:
        group, (one, other) = next(iter(shared.items()))
        examples = " and ".join(_first_path(index, group) for index in (one, other))
        raise UserError(
            f"{data_dir}: {len(shared)} of {len(groups.names)} groups are in two splits, for example "
            f"{groups.names[group]!r} in {one.split} and {other.split} ({examples}); "
            "a group must be in one split: move its images, or correct the groups"
        )


def _first_path(index: Index, group: int) -> str:
    assert index.groups is not None
    return repr(index.paths[int(np.flatnonzero(index.groups == group)[0])])
