"""A CSV file with a column of image paths and one of labels as a source."""

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path

from include import IMAGE_EXTENSIONS
from model.images.build.items import BuildOptions, Item, Remarks, pick_split
from utils import UserError, csv_value, key64, nearest

Row = dict[str, str]  # column -> cell
NOT_IN_NAMES = re.compile(r'[\x00-\x1f/\\:*?"<>|]')  # characters that no folder's name may have


def read_table(root: Path, table: Path, options: BuildOptions, remarks: Remarks) -> Iterator[Item]:
    """The images that `table` lists; images of one group stay on one side of every split.

    UserError for a table that cannot be read, columns it does not have, images that are missing, rows without label.
    """
    rows = _read_rows(table)
    image_col, label_col, group_col = _find_columns(table, rows[0], options)
    images = _find_images(root, table, [row[image_col] or "" for row in rows])
    for number, (row, image) in enumerate(zip(rows, images, strict=True)):
        label = NOT_IN_NAMES.sub("_", (row[label_col] or "").strip()).lstrip(".")
        if not label:
            raise UserError(f"--labels {table}: row {number + 2} has no {label_col}")
        group = f"group {row[group_col]}" if group_col else f"image {number}"
        split = pick_split(key64("split", group) / 2**63)
        yield Item(split, label, f"{number:06d}_{image.name}", image, group)
    kept = f", keeping each {group_col} on one side" if group_col else ""
    remarks.append(f"split into 70 % train, 15 % valid, 15 % test{kept}")


def _read_rows(table: Path) -> list[Row]:
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            rows = [
                {key: csv_value(value) if isinstance(value, str) else value for key, value in row.items()}
                for row in csv.DictReader(file)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--labels {table}: {getattr(error, 'strerror', None) or error}") from None
    if not rows:
        raise UserError(f"--labels {table}: no rows")
    return rows


def _find_columns(table: Path, first: Row, options: BuildOptions) -> tuple[str, str, str | None]:
    """The columns of images, labels and (perhaps) groups. UserError for one that is missing."""
    given = {"image_col": options.image_col, "label_col": options.label_col, "group_col": options.group_col}
    for option, column in given.items():
        if column and column not in first:
            raise UserError(f"--{option} {column}: no such column in {table}; {nearest(column, first)}")
    if not options.image_col or not options.label_col:
        raise UserError(f"--labels needs --image_col and --label_col; columns of {table}: {', '.join(first)}")
    return options.image_col, options.label_col, options.group_col


def _find_images(root: Path, table: Path, names: list[str]) -> list[Path]:
    """The file of each name below `root`. UserError listing those that are missing."""
    images = [_find_image(root, name) for name in names]
    missing = [name for name, image in zip(names, images, strict=True) if image is None]
    if missing:
        shown = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise UserError(f"--labels {table}: {len(missing)} of {len(names)} images are not below {root}: {shown}")
    return [image for image in images if image is not None]


def _find_image(root: Path, name: str) -> Path | None:
    """The file of that name below `root`, the extension being optional."""
    if not name or os.path.isabs(name) or ".." in Path(name).parts:
        return None
    candidates = [root / name, *((root / f"{name}{extension}") for extension in IMAGE_EXTENSIONS)]
    return next((path for path in candidates if path.is_file()), None)
