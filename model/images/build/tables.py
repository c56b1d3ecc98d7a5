"""Tables of a build: a CSV file of images and labels as a source, and labels.csv and groups.csv of what is built."""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from include import IMAGE_EXTENSIONS, SPLIT_SYNONYMS, SPLITS
from model.images.build.items import BuildOptions, Item, Remarks
from model.images.tables.groups import GROUPS
from model.images.tables.labels import LABELS, OPTIONAL
from model.images.tables.rows import Table, plain_path, read_table
from utils import FORMULA, UserError, nearest

NOT_IN_NAMES = re.compile(r'[\x00-\x1f/\\:*?"<>|]')  # characters that no folder's name may have
RESERVED = ("path", "label", *OPTIONAL)  # columns of labels.csv that mean something


# --- as a source ----------------------------------------------------------------------------------------


def read_images(root: Path, path: Path, options: BuildOptions, remarks: Remarks) -> Iterator[Item]:
    """The images that a table lists, with the split of its column `split`, if it has one.

    UserError for a table that cannot be read, columns it does not have, images that are missing or listed twice, rows
    without label.
    """
    table = read_table(path, ())
    image_col, label_col, group_col = _find_columns(table, options)
    images = _find_images(root, table, image_col)
    labels = table.texts(label_col)
    groups = table.texts(group_col) if group_col else [""] * len(table)
    splits = _find_splits(table)
    remarks += _describe_unlisted(root, images, path)
    further = _name_further(table, {image_col, label_col, group_col, "split" if splits else ""}, remarks)
    texts = {name: table.texts(column) for column, name in further.items()}
    for number, image in enumerate(images):
        label = labels[number]
        if not label:
            raise UserError(f"--labels {path}: line {table.lines[number]} has no {label_col}")
        row = {name: cells[number] for name, cells in texts.items()}
        split = splits[number] if splits else ""
        yield Item(split, label, f"{number:06d}_{image.name}", image, groups[number], name_folder(label), row)


def _describe_unlisted(root: Path, images: Sequence[Path], table: Path) -> list[str]:
    """A remark on the images below `root` that no row names: they are left out."""
    listed = {os.path.realpath(image) for image in images}
    found = (path for path in root.rglob("*") if path.name.lower().endswith(IMAGE_EXTENSIONS) and path.is_file())
    unlisted = sorted(str(path.relative_to(root)) for path in found if os.path.realpath(path) not in listed)
    shown = ", ".join(unlisted[:3]) + (", ..." if len(unlisted) > 3 else "")
    return [f"{len(unlisted)} images have no row in {table} and are left out: {shown}"] if unlisted else []


def name_folder(label: str) -> str:
    """The folder of a class: its name without what file systems refuse."""
    return NOT_IN_NAMES.sub("_", label).lstrip(".") or "_"


def _find_columns(table: Table, options: BuildOptions) -> tuple[str, str, str | None]:
    """The columns of images, labels and (perhaps) groups. UserError for one that is missing."""
    given = {"image_col": options.image_col, "label_col": options.label_col, "group_col": options.group_col}
    for option, column in given.items():
        if column and column not in table.columns:
            raise UserError(f"--{option} {column}: no such column in {table.path}; {nearest(column, table.columns)}")
    if not options.image_col or not options.label_col:
        columns = ", ".join(table.columns)
        raise UserError(f"--labels needs --image_col and --label_col; columns of {table.path}: {columns}")
    return options.image_col, options.label_col, options.group_col


def _find_splits(table: Table) -> list[str] | None:
    """The split of each row; None unless there is a column `split` that holds nothing but splits, and more than one."""
    if "split" not in table.columns:
        return None
    given = [cell.lower() for cell in table.texts("split")]
    splits = [SPLIT_SYNONYMS.get(cell, cell) or "train" for cell in given]
    return splits if set(splits) <= set(SPLITS) and len(set(splits)) > 1 else None


def _name_further(table: Table, used: set[str | None], remarks: Remarks) -> dict[str, str]:
    """Column -> its name in labels.csv, for those that decide nothing; a name that means something there is changed."""
    further = [column for column in table.columns if column not in used]
    names = {column: f"source_{column}" if column.lower() in RESERVED else column for column in further}
    for column, name in names.items():
        if name != column:
            remarks.append(f"column {column} is called {name} in {LABELS}, where {column.lower()} has a meaning")
    return names


def _find_images(root: Path, table: Table, column: str) -> list[Path]:
    """The file below `root` that each row names. UserError: some are missing, or two rows name the same."""
    names = table.columns[column]
    images = [_find_image(root, name) for name in names]
    missing = [name for name, image in zip(names, images, strict=True) if image is None]
    if missing:
        shown = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise UserError(f"--labels {table.path}: {len(missing)} of {len(names)} images are not below {root}: {shown}")
    first: dict[Path, int] = {}
    for image, line in zip(images, table.lines, strict=True):
        if image in first:
            raise UserError(
                f"--labels {table.path}: lines {first[image]} and {line} are both of {image.name!r}; "
                "one label per image is possible: keep one of them"
            )
        if image:
            first[image] = line
    return list(first)


def _find_image(root: Path, name: str) -> Path | None:
    """The file of that name below `root`, the extension being optional."""
    for written in (name, plain_path(name)):
        if not written or os.path.isabs(written) or ".." in Path(written).parts or "\0" in written:
            continue
        candidates = [root / written, *((root / f"{written}{extension}") for extension in IMAGE_EXTENSIONS)]
        if found := next((path for path in candidates if path.is_file()), None):
            return found
    return None


# --- of a dataset folder --------------------------------------------------------------------------------


def have_tables(items: Sequence[Item]) -> bool:
    """Whether what is built gets tables: a source with a table or groups. UserError for labels they cannot hold."""
    is_needed = any(item.group or item.further is not None for item in items)
    for label in {item.label for item in items} if is_needed else ():
        if "|" in label or not label.isprintable():
            what = "a | divides several labels, and one per image is possible" if "|" in label else "not readable text"
            raise UserError(f"the label {label!r}: {what}; change it")
    return is_needed


def write_tables(items: Sequence[Item], target: Path) -> None:
    """labels.csv, and groups.csv where there are groups, of images that have been written."""
    columns = list(dict.fromkeys(column for item in items for column in item.further or ()))
    rows = [
        [item.path, item.label, item.split, *((item.further or {}).get(name, "") for name in columns)] for item in items
    ]
    _write(target / LABELS, [["path", "label", "split", *columns], *rows])
    if any(item.group for item in items):
        _write(target / GROUPS, [["path", "group"], *([item.path, item.group] for item in items)])


def _write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        # A cell that a spreadsheet would run as a formula gets an apostrophe, which is taken off when it is read.
        csv.writer(file).writerows([f"'{cell}" if FORMULA.match(cell) else cell for cell in row] for row in rows)
