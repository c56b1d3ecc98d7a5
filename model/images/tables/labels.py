"""labels.csv -> the splits of a dataset, whatever its folders are called: path, label; perhaps split, group, weight."""

import functools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from include import SPLIT_SYNONYMS, SPLITS
from model.images.index import Index, Listing, list_images
from model.images.paths import to_nfc
from model.images.tables.rows import Table, locate_images, read_table
from utils import UserError, nearest

LABELS = "labels.csv"
OPTIONAL = ("split", "group", "weight")
NO_IMAGES = (".csv", ".json", ".txt", ".md")  # what lies beside images without a word


@dataclass
class Labelled:
    """The images of a dataset that labels.csv names."""

    indexes: dict[str, Index]  # split -> its files
    paths: list[str]  # of all of them, in NFC
    cells: dict[str, list[str]]  # column -> a cell for each path
    left_out: set[str]  # images below the folder without a row

    def column(self, name: str) -> dict[str, str]:
        """Path -> cell; empty where there is no such column."""
        return dict(zip(self.paths, self.cells[name], strict=True)) if name in self.cells else {}

    def further(self, path: str) -> dict[str, str]:
        """Column -> cell of one image, for the columns that decide nothing about labels, splits and groups."""
        columns = [name for name in self.cells if name not in ("label", "split", "group")]
        return {name: self.cells[name][self.row_of[path]] for name in columns}

    @functools.cached_property
    def row_of(self) -> dict[str, int]:
        return {path: row for row, path in enumerate(self.paths)}


def list_labelled(data_dir: Path) -> Labelled:
    """The splits that labels.csv makes. The order of files is that of folders, whatever that of rows.

    UserError: a damaged table, rows without an image or label, one class alone, a class without training images.
    """
    # Every image below the folder, in the order of folders, and the row of each.
    listing = Listing()
    list_images(listing, str(data_dir), len(os.path.join(data_dir, "")), set())
    files = listing.index(data_dir, "train", [LABELS], [len(listing)])
    table = read_table(data_dir / LABELS, ("path", "label"), OPTIONAL)
    every_path = [to_nfc(path) for path in files.paths]
    positions = {path: place for place, path in enumerate(every_path)}
    located = np.array(locate_images(table, positions, data_dir), np.int64)
    # Rows in the order of their images.
    order = np.argsort(located)
    files = files.select(located[order], "train")
    paths = [every_path[place] for place in located[order].tolist()]
    texts = {name: table.texts(name) for name in table.columns if name != "path"}
    cells = {name: [column[row] for row in order.tolist()] for name, column in texts.items()}
    lines = [table.lines[row] for row in order.tolist()]
    # What they say.
    names = [to_nfc(label) for label in cells["label"]]
    _check_labels(table.path, names, lines)
    classes = sorted(set(names))
    number = {name: place for place, name in enumerate(classes)}
    files.classes = classes
    files.labels = np.array([number[name] for name in names], np.int32)
    if "weight" in cells:
        files.weights = _read_weights(table.path, cells["weight"], lines)
    split_of = _find_splits(table.path, cells.get("split"), paths, lines)
    indexes = {split: files.select(split_of == split, split) for split in SPLITS if split in split_of}
    _check_classes(table, indexes)
    indexes["train"].ignored = _count_differences(listing, table, paths, names, split_of)
    return Labelled(indexes, paths, cells, positions.keys() - set(paths))


def _check_labels(path: Path, names: Sequence[str], lines: Sequence[int]) -> None:
    for name, line in zip(names, lines, strict=True):
        if not name:
            raise UserError(f"{path}: line {line} has no label")
        if "|" in name:
            raise UserError(
                f"{path}: line {line} has the label {name!r}: several labels of one image are divided by |, and this "
                "version trains with one label per image; keep one"
            )
        if not name.isprintable():
            raise UserError(f"{path}: line {line} has a label that is not readable text ({name!r}); save it as UTF-8")


def _read_weights(path: Path, cells: Sequence[str], lines: Sequence[int]) -> np.ndarray | None:
    """(N,) float64, 1 where nothing is said; None when all are equal."""
    weights = np.ones(len(cells))
    for place, (cell, line) in enumerate(zip(cells, lines, strict=True)):
        try:
            weights[place] = float(cell or 1)
        except ValueError:
            weights[place] = 0
        if not 0 < weights[place] < float("inf"):
            raise UserError(
                f"{path}: line {line} has the weight {cell!r}; possible are numbers above 0 (an image that is not "
                "to count has no row)"
            )
    return None if (weights == weights[0]).all() else weights


def _find_splits(path: Path, cells: Sequence[str] | None, paths: Sequence[str], lines: Sequence[int]) -> np.ndarray:
    """(N,) the split of each image: as the table says, else as its folder says, else train."""
    found = []
    for place, image in enumerate(paths):
        given = cells[place].lower() if cells else ""
        split = SPLIT_SYNONYMS.get(given, given)
        if split and split not in SPLITS:
            raise UserError(f"{path}: line {lines[place]} has the split {given!r}; {nearest(given, SPLITS)}")
        found.append(split or split_of_folder(image) or "train")
    return np.array(found)


def split_of_folder(path: str) -> str:
    """The split that the first folder of a path is called, or ""."""
    folder, slash, _ = path.partition("/")
    split = SPLIT_SYNONYMS.get(folder.lower(), folder.lower())
    return split if slash and split in SPLITS else ""


def _check_classes(table: Table, indexes: Mapping[str, Index]) -> None:
    """UserError unless there are two classes, and images of each to train with."""
    if "train" not in indexes:
        raise UserError(f"{table.path}: no row is of the split train (it has {', '.join(indexes)})")
    classes = indexes["train"].classes
    if len(classes) < 2:
        raise UserError(f"{table.path}: one class ({classes[0]}); at least two are needed")
    counts = np.bincount(indexes["train"].labels, minlength=len(classes))
    if absent := [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        others = ", ".join(split for split in indexes if split != "train")
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        raise UserError(f"{table.path}: classes with images in {others} and none in train: {shown}")


def _count_differences(
    listing: Listing, table: Table, paths: Sequence[str], names: Sequence[str], split_of: np.ndarray
) -> Counter[str]:
    """What the table leaves out, and where folders say something else."""
    ignored = listing.ignored
    for kind in NO_IMAGES:
        ignored.pop(kind, None)
    classes = set(names)
    folders = [path.split("/")[-2:-1] for path in paths]
    ignored["images without a row in labels.csv"] = len(listing) - len(table)
    ignored["folder names that contradict labels.csv"] = sum(
        bool(folder and folder[0] in classes and folder[0] != name) or split_of_folder(path) not in ("", split)
        for folder, name, path, split in zip(folders, names, paths, split_of.tolist(), strict=True)
    )
    return +ignored
