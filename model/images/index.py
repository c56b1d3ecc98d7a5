"""A dataset folder -> its splits, classes and files. Reads names and sizes, no pixels."""

import hashlib
import operator
import os
import stat
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from include import IMAGE_EXTENSIONS, SPLIT_SYNONYMS, SPLITS
from utils import UserError

LAYOUT = "a dataset is a folder {train,valid,test}/CLASS/IMAGE"
JUNK = {".ds_store", "thumbs.db", "desktop.ini"}
ADVICE = {".heic": "pillow-heif", ".heif": "pillow-heif", ".avif": "pillow-avif-plugin"}
BLOCK = 65_536  # names that are worked on at a time; part of the definition of a fingerprint


class Paths(Sequence[str]):
    """File names as one string of bytes and the place of each in it: 10 bytes a name beside its own.

    Looks like a list of str. A slice, or an array of positions, gives Paths that share the names. A list of
    100 million str would be some 9 GB, and forked workers would copy it by merely looking (reference counts).
    """

    def __init__(self, names: bytes | bytearray, starts: np.ndarray, lengths: np.ndarray):
        """`names` as os.fsencode gives them; `starts` (N,) int64 and `lengths` (N,) uint16 in bytes."""
        self.names, self.starts, self.lengths = names, starts, lengths

    @classmethod
    def joined(cls, names: bytes | bytearray, lengths: np.ndarray | array) -> "Paths":
        """Names that lie one behind the other, of `lengths` (N,) uint16 bytes."""
        sizes = np.asarray(lengths, np.uint16)
        starts = np.cumsum(sizes, dtype=np.int64)
        starts -= sizes
        return cls(names, starts, sizes)

    @classmethod
    def of(cls, paths: Iterable[str]) -> "Paths":
        encoded = [os.fsencode(path) for path in paths]
        return cls.joined(b"".join(encoded), array("H", map(len, encoded)))

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: "slice | np.ndarray") -> "Paths": ...
    def __getitem__(self, key: Any) -> "str | Paths":
        if isinstance(key, slice | np.ndarray):
            return Paths(self.names, self.starts[key], self.lengths[key])
        position = operator.index(key)
        start = int(self.starts[position])
        return os.fsdecode(bytes(self.names[start : start + int(self.lengths[position])]))

    def __iter__(self) -> Iterator[str]:
        for block, lengths in self.blocks():
            yield from map(os.fsdecode, cut(block, lengths))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Paths | list) and len(self) == len(other) and all(map(operator.eq, self, other))

    def __repr__(self) -> str:
        return f"Paths({list(self[:3])}{', ...' if len(self) > 3 else ''})"

    def blocks(self) -> Iterator[tuple[bytes, np.ndarray]]:
        """All names in their order, many at a time: one behind the other, and their lengths (M,) uint16."""
        for at in range(0, len(self), BLOCK):
            starts, lengths = self.starts[at : at + BLOCK], self.lengths[at : at + BLOCK]
            ends = starts + lengths
            breaks = np.flatnonzero(starts[1:] != ends[:-1])  # what lies together is copied together
            first, last = np.append(0, breaks + 1), np.append(breaks, -1)
            runs = zip(starts[first].tolist(), ends[last].tolist(), strict=True)
            yield b"".join([self.names[start:end] for start, end in runs]), lengths


def cut(block: bytes, lengths: np.ndarray) -> list[bytes]:
    """The names of a block of Paths."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return [block[start:end] for start, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]


@dataclass(eq=False)
class Index:
    """The files of one split, in a fixed order. `paths` are relative to `root`; `labels` index `classes`."""

    root: Path
    split: str
    classes: list[str]  # NFC
    paths: Paths
    labels: np.ndarray  # (N,) int32
    sizes: np.ndarray  # (N,) int64, bytes; -1 for what cannot be looked at (a dangling link)
    mtimes: np.ndarray  # (N,) int64, ns
    ignored: Counter[str] = field(default_factory=Counter)  # reason -> count

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, positions: np.ndarray, split: str) -> "Index":
        """The files at `positions`, or where a mask (N,) is true, as a split of its own."""
        pick = [column[positions] for column in (self.paths, self.labels, self.sizes, self.mtimes)]
        return Index(self.root, split, self.classes, *pick)  # type: ignore[arg-type]

    def state(self, *versions: int) -> str:
        """Digest over names, sizes and times of change: what a cache of these files must agree with."""
        digest = hashlib.sha256(repr((versions, len(self))).encode())
        for block, _ in self.paths.blocks():
            digest.update(block)
        for column in (self.paths.lengths, self.sizes, self.mtimes):
            digest.update(np.ascontiguousarray(column))
        return digest.hexdigest()


def by_class(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N,) sorted by label, in their order within each; and (K + 1,) where each class begins in them.

    One pass for all classes: a search for each would take K passes.
    """
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=num_classes))])
    small = labels.astype(np.uint16) if num_classes <= 1 << 16 else labels  # numpy sorts 16 bits by radix
    return np.argsort(small, kind="stable"), starts


def nfc(name: str) -> str:
    """One spelling of a name, whichever way its file system composes accents."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _entries(folder: str | Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: (nfc(entry.name), entry.name))


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK


def find_splits(data_dir: Path) -> dict[str, Path]:
    """split -> its folder. Class folders at the root are read as train. UserError: nothing can be read."""
    if not data_dir.exists():
        make = f"python build_dataset.py --source SRC --data_dir {data_dir}"
        raise UserError(f"{data_dir}: no such dataset folder; make one: {make}")
    if not data_dir.is_dir():
        make = f"python build_dataset.py --source {data_dir} --data_dir DATA"
        raise UserError(f"{data_dir} is a file; {LAYOUT}: {make}")
    entries = _entries(data_dir)
    folders = [entry for entry in entries if not _is_hidden(entry.name) and _is_dir(entry)]
    found: dict[str, Path] = {}
    for entry in folders:
        split = SPLIT_SYNONYMS.get(entry.name.lower(), entry.name.lower())
        if split in found:
            both = f"{found[split].name} and {entry.name}"
            raise UserError(f"{data_dir}: {both} are the same split; keep one of them")
        if split in SPLITS:
            found[split] = Path(entry.path)
    if not found and folders:
        found["train"] = data_dir
    if "train" not in found:
        if num_images := sum(entry.name.lower().endswith(IMAGE_EXTENSIONS) for entry in entries):
            what = f"{num_images} images and no class folders"
        else:
            what = ", ".join(entry.name for entry in entries[:5]) or "nothing"
        make = f"python build_dataset.py --source {data_dir} --data_dir DATA"
        raise UserError(f"{data_dir}: no train folder and no class folders (it holds {what}); {LAYOUT}: {make}")
    return found


def index_split(folder: Path, split: str, root: Path) -> Index:
    """List the class folders of one split. UserError: empty or lone class, no class folders."""
    ignored: Counter[str] = Counter()
    folders: dict[str, str] = {}  # class -> its folder
    loose = 0
    for entry in _entries(folder):
        if _is_hidden(entry.name):
            ignored["hidden files"] += 1
        elif not _is_dir(entry):
            loose += entry.name.lower().endswith(IMAGE_EXTENSIONS)
        elif nfc(entry.name) in folders:
            raise UserError(f"{folder}: two class folders are called {nfc(entry.name)!r} in two encodings; join them")
        else:
            folders[nfc(entry.name)] = entry.path
    if loose and not folders:
        raise UserError(
            f"{folder}: {loose} images lie beside each other, in no class folders; {LAYOUT}: "
            f"python build_dataset.py --source {root} --data_dir DATA"
        )
    if loose:
        ignored["images outside class folders"] = loose
    if len(folders) < 2:
        names = ", ".join(folders) or "none"
        raise UserError(f"{folder}: {len(folders)} class folders ({names}); at least two are wanted")
    found, counts = Listing(ignored), []
    for path in folders.values():
        before, ignored_before = len(found), ignored.copy()
        _list_images(found, path, len(os.path.join(root, "")), set())
        counts.append(len(found) - before)
        if not counts[-1]:
            others = describe_ignored(ignored - ignored_before)
            raise UserError(
                f"{path}: no images in this class folder ({others or 'it is empty'}); fill it or remove it "
                f"(read are {' '.join(IMAGE_EXTENSIONS)})"
            )
    return found.index(root, split, list(folders), counts)


@dataclass
class Listing:
    """The columns of an Index while they grow, class after class."""

    ignored: Counter[str] = field(default_factory=Counter)
    names: bytearray = field(default_factory=bytearray)
    lengths: array = field(default_factory=lambda: array("H"))
    sizes: array = field(default_factory=lambda: array("q"))
    mtimes: array = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, path: str, size: int, mtime: int) -> None:
        encoded = os.fsencode(path)
        self.names += encoded
        self.lengths.append(len(encoded))
        self.sizes.append(size)
        self.mtimes.append(mtime)

    def index(self, root: Path, split: str, classes: list[str], counts: list[int]) -> Index:
        """`counts`: the files of each class. The columns are the index's from now on."""
        labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        sizes, mtimes = np.frombuffer(self.sizes, np.int64), np.frombuffer(self.mtimes, np.int64)
        return Index(root, split, classes, Paths.joined(self.names, self.lengths), labels, sizes, mtimes, self.ignored)


def _list_images(found: Listing, folder: str, prefix: int, visited: set[tuple[int, int]]) -> None:
    """Add the images below a class folder, sub-folders too; a folder is entered once, whatever leads to it.

    `prefix`: how many characters of a path are the root's.
    """
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in visited:
        found.ignored["links that lead back"] += 1
        return
    visited.add((status.st_dev, status.st_ino))
    for entry in _entries(folder):
        name = entry.name.lower()
        if _is_hidden(name):
            found.ignored["hidden files"] += 1
            continue
        is_image = name.endswith(IMAGE_EXTENSIONS)
        if not is_image and not _is_dir(entry):
            found.ignored[os.path.splitext(name)[1] or "files without extension"] += 1
            continue
        try:
            status = entry.stat()
            size, mtime, mode = status.st_size, status.st_mtime_ns, status.st_mode
        except OSError:  # a dangling link: a broken image, found when it is to be read
            size, mtime, mode = -1, 0, stat.S_IFREG
        if stat.S_ISDIR(mode):
            _list_images(found, entry.path, prefix, visited)
        elif stat.S_ISREG(mode):
            found.add(entry.path[prefix:], size, mtime)
        else:
            found.ignored["pipes, sockets and devices"] += 1


def check_classes(classes: list[str], wanted: list[str], where: str, reference: str) -> None:
    """UserError that lists missing and extra classes; the numbers of the classes depend on the list."""
    have, want = set(map(nfc, classes)), set(map(nfc, wanted))
    parts = []
    for title, names in (("missing", want - have), ("extra", have - want)):
        if names:
            parts.append(f"{title}: {', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''}")
    if parts:
        raise UserError(
            f"{where}: its classes are not those of {reference} ({'; '.join(parts)}); "
            "the list numbers the classes, so make both the same"
        )


def describe_ignored(ignored: Counter[str]) -> str:
    """ "412 .heic files ignored: convert them, or install pillow-heif" and the like; "" when nothing was."""
    parts = []
    for kind, count in ignored.most_common():
        noun = f"{kind} files" if kind.startswith(".") else kind
        advice = f": convert them, or install {ADVICE[kind]}" if kind in ADVICE else ""
        parts.append(f"{count} {noun} ignored{advice}")
    return "; ".join(parts)
