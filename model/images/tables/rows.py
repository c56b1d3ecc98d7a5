"""A CSV file as people and spreadsheets write it -> its columns, and the image that each row names."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from include import IMAGE_EXTENSIONS
from model.images.paths import to_nfc
from utils import UserError, csv_value, nearest

DELIMITERS = ",;\t"
MOST_SHOWN = 3  # rows in a message


@dataclass
class Table:
    """The cells of a CSV file."""

    path: Path
    columns: dict[str, list[str]]  # name -> a cell for each row, as it is written
    lines: list[int]  # of the file, from 1 on: where each row ends

    def __len__(self) -> int:
        return len(self.lines)

    def texts(self, column: str) -> list[str]:
        """A column without the spaces around its cells, and without a spreadsheet's apostrophe."""
        return [csv_value(cell.strip()) for cell in self.columns[column]]


def read_table(path: Path, required: Sequence[str], known: Sequence[str] = ()) -> Table:
    """The table, UTF-8 with or without a byte-order mark, its cells divided by commas, semicolons or tabs.

    `required` and `known` columns are recognised in upper case, too. Columns without a name and empty rows are left
    out. UserError: no such columns, no rows, a row with too many or too few cells, bytes that are no text.
    """
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            delimiter = _find_delimiter(file.readline(), required)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    rows.append(cells)
                    lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{path}: line {len(rows) and lines[-1] + 1}: {error}; is a quote missing?") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    names = _name_columns(path, rows[0] if rows else [], required, known)
    if len(rows) < 2:
        raise UserError(f"{path}: no rows; it needs the columns {', '.join(required)}, and a row for each image")
    for line, cells in zip(lines, rows, strict=True):
        if len(cells) != len(names):
            raise UserError(
                f"{path}: line {line} has {len(cells)} cells, the header has {len(names)}; a cell that holds a "
                f"{'comma' if delimiter == ',' else 'delimiter'} needs quotes around it"
            )
    columns = {name: [cells[place] for cells in rows[1:]] for place, name in enumerate(names) if name}
    return Table(path, columns, lines[1:])


def _find_delimiter(header: str, required: Sequence[str]) -> str:
    """The delimiter that gives the required columns, or else the one that is there most often."""
    for delimiter in DELIMITERS:
        names = {name.strip().strip('"').strip().lower() for name in header.split(delimiter)}
        if required and names.issuperset(required):
            return delimiter
    return max(DELIMITERS, key=header.count)


def _name_columns(path: Path, header: Sequence[str], required: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names of all columns. UserError when a required one is missing, or two have the same name."""
    names = [name.strip() for name in header]
    names = [name.lower() if name.lower() in {*required, *known} else name for name in names]
    for name in required:
        if name not in names:
            raise UserError(
                f"{path}: no column {name}; it has {', '.join(filter(None, names))[:200] or 'none'} "
                f"({nearest(name, names)}); rename the column, or the file if it is not meant for this"
            )
    for name in names:
        if name and names.count(name) > 1:
            raise UserError(f"{path}: two columns are called {name!r}; rename one")
    return names


# --- the images that the rows name --------------------------------------------------------------------


def locate_images(table: Table, positions: Mapping[str, int], root: Path) -> list[int]:
    """The position of the image that each row's `path` names. `positions`: path below `root`, in NFC -> position.

    Backslashes are read as slashes where no file has them in its name. UserError for paths of no image, and for two
    rows of one image.
    """
    named = [_locate(path, positions) for path in table.columns["path"]]
    unknown = [number for number, position in enumerate(named) if position is None]
    if unknown:
        rows = [f"line {table.lines[number]} {table.columns['path'][number]!r}" for number in unknown[:MOST_SHOWN]]
        reasons = [_explain(table.columns["path"][number], positions) for number in unknown[:MOST_SHOWN]]
        shown = ", ".join(f"{row} ({reason})" for row, reason in zip(rows, reasons, strict=True))
        more = ", ..." if len(unknown) > MOST_SHOWN else ""
        raise UserError(
            f"{table.path}: {len(unknown)} of {len(table)} rows name no image of {root}: {shown}{more}; "
            "correct or remove these rows"
        )
    located = [position for position in named if position is not None]
    first: dict[int, int] = {}  # position -> row
    for number, position in enumerate(located):
        if position in first:
            raise UserError(
                f"{table.path}: lines {table.lines[first[position]]} and {table.lines[number]} are both of "
                f"{table.columns['path'][number]!r}; keep one of them"
            )
        first[position] = number
    return located


def _locate(path: str, positions: Mapping[str, int]) -> int | None:
    """As it is written, else without what a spreadsheet or another system added to it."""
    position = positions.get(to_nfc(path))
    return position if position is not None else positions.get(plain_path(path))


def plain_path(path: str) -> str:
    """A path without surrounding spaces, a spreadsheet's apostrophe, backslashes and ./, in NFC."""
    return to_nfc(csv_value(path.strip())).replace("\\", "/").removeprefix("./")


def _explain(path: str, positions: Mapping[str, int]) -> str:
    """Why a path names no image."""
    plain = plain_path(path)
    if not plain:
        return "it is empty"
    if plain.startswith("/") or plain[1:3] == ":/":
        return "absolute; paths are relative to the dataset folder"
    if ".." in plain.split("/"):
        return ".. leads out of the dataset folder"
    if not plain.lower().endswith(IMAGE_EXTENSIONS):
        return f"not an image; possible: {' '.join(IMAGE_EXTENSIONS)}"
    for other in positions:
        if other.lower() == plain.lower():
            return f"upper and lower case differ; did you mean {other!r}?"
    return "no such file"
