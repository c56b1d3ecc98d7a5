"""A dataset folder -> its splits, as its folders and its tables say. Reads names, sizes and tables, no pixels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from model.images.index import Index, find_splits, index_split
from model.images.paths import to_nfc
from model.images.tables.groups import GROUPS, Groups, agree, check_sides, number_groups, read_groups
from model.images.tables.labels import LABELS, Labelled, list_labelled


@dataclass
class Splits:
    """The splits of one dataset folder. A folder's files are listed when they are asked for, or by a table."""

    data_dir: Path
    folders: dict[str, Path]  # split -> the folder that holds it, or the table that says what it is
    indexes: dict[str, Index] = field(default_factory=dict)
    groups: Groups | None = None
    labelled: Labelled | None = None  # what labels.csv says

    def index(self, split: str) -> Index:
        """The files of a split. UserError: no class folders, only one, or one without images."""
        if split not in self.indexes:
            self.indexes[split] = index_split(self.folders[split], split, self.data_dir)
        self.indexes[split].splits = tuple(self.folders)
        return self.indexes[split]

    def name_groups(self, index: Index) -> list[str]:
        """The name of each image's group, "" for none."""
        if self.groups is None or index.groups is None:
            return [""] * len(index)
        names = self.groups.names
        return [names[number] if number < len(names) else "" for number in index.groups.tolist()]

    def check_groups(self, joins_valid: bool = False) -> None:
        """UserError when a group is in two splits. `joins_valid`: train and valid count as one, as folds take them."""
        if not self.groups:
            return
        trained_on = [self.index(split) for split in ("train", "valid") if split in self.folders]
        others = [[self.index(split)] for split in self.folders if split not in ("train", "valid")]
        check_sides(
            [trained_on, *others] if joins_valid else [*([i] for i in trained_on), *others], self.groups, self.data_dir
        )


def list_splits(data_dir: Path) -> Splits:
    """UserError when there is no training data, or a table is damaged or does not fit the images."""
    if (data_dir / LABELS).exists():
        labelled = list_labelled(data_dir)
        folders = dict.fromkeys(labelled.indexes, data_dir / LABELS)
        splits = Splits(data_dir, folders, labelled.indexes, labelled=labelled)
    else:
        splits = Splits(data_dir, find_splits(data_dir))
    column = splits.labelled.column("group") if splits.labelled else {}
    if column or (data_dir / GROUPS).exists():
        _set_groups(splits, column)
    return splits


def _set_groups(splits: Splits, column: Mapping[str, str]) -> None:
    """Read the groups, and note that of each image in the indexes. `column`: what labels.csv says of them."""
    indexes = [splits.index(split) for split in splits.folders]
    paths = [to_nfc(path) for index in indexes for path in index.paths]
    named = [""] * len(paths)
    if (splits.data_dir / GROUPS).exists():
        positions = {path: position for position, path in enumerate(paths)}
        named = read_groups(splits.data_dir, positions, splits.labelled.left_out if splits.labelled else ())
    splits.groups = number_groups(agree(paths, named, column, splits.data_dir))
    first = 0
    for index in indexes:
        index.groups = splits.groups.numbers[first : first + len(index)]
        first += len(index)
