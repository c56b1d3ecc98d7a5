"""A dataset folder -> its splits, classes and files. Reads names and sizes, no pixels."""

import hashlib
import os
import re
import stat
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from include import IMAGE_EXTENSIONS, SPLIT_SYNONYMS, SPLITS
from model.images.paths import Paths, to_nfc
from utils import UserError

LAYOUT = "a dataset is a folder {train,valid,test}/CLASS/IMAGE"
FLAT = re.compile(r"^(train|valid|validation|val|test)", re.IGNORECASE)  # begins the name of a flat split's folder
JUNK = {".ds_store", "thumbs.db", "desktop.ini"}
ADVICE = {".heic": "pillow-heif", ".heif": "pillow-heif", ".avif": "pillow-avif-plugin"}


@dataclass(eq=False)
class Index:
    """The files of one split, in a fixed order. `paths` are relative to `root`; `labels` are positions in `classes`."""

    root: Path
    split: str
    classes: list[str]  # NFC
    paths: Paths
    labels: np.ndarray  # (N,) int32
    sizes: np.ndarray  # (N,) int64, bytes; -1 for a dangling link
    mtimes: np.ndarray  # (N,) int64, ns
    ctimes: np.ndarray  # (N,) int64, ns: when content, owner, permissions or number of links changed
    ignored: Counter[str] = field(default_factory=Counter)  # reason -> count
    groups: np.ndarray | None = None  # (N,) int64, numbers of the groups in the whole dataset; None: it has none
    weights: np.ndarray | None = None  # (N,) float64, above 0: of the images in the training loss; None: all are equal
    splits: tuple[str, ...] = ()  # of the whole dataset

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, positions: np.ndarray, split: str) -> "Index":
        """The files at `positions`, or where a mask (N,) is true, as a split of its own."""
        return Index(
            self.root,
            split,
            self.classes,
            self.paths[positions],
            self.labels[positions],
            self.sizes[positions],
            self.mtimes[positions],
            self.ctimes[positions],
            groups=None if self.groups is None else self.groups[positions],
            weights=None if self.weights is None else self.weights[positions],
            splits=self.splits,
        )

    def __add__(self, other: "Index") -> "Index":
        """These files, then those of `other`, as one split named as this one."""
        return Index(
            self.root,
            self.split,
            self.classes,
            self.paths + other.paths,
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.sizes, other.sizes]),
            np.concatenate([self.mtimes, other.mtimes]),
            np.concatenate([self.ctimes, other.ctimes]),
            self.ignored + other.ignored,
            _join(self.groups, other.groups),
            _join(self.weights, other.weights),
            self.splits,
        )

    @property
    def is_grouped(self) -> bool:
        """Whether any two of these files are of one group."""
        return self.groups is not None and len(np.unique(self.groups)) < len(self)

    def group_digest(self) -> bytes:
        """Digest of which files are of one group: the groups are numbered as they appear, so names do not matter."""
        groups = np.arange(len(self)) if self.groups is None else self.groups
        _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
        rank = np.empty(len(first), "<i8")
        rank[np.argsort(first)] = np.arange(len(first))
        return hashlib.sha256(rank[inverse.reshape(-1)].data).digest()

    def state(self, *versions: int) -> str:
        """Digest of names, sizes and mtimes. A cache with another one is of other files.

        Change times are not in it: a hard link, chmod or rsync changes them and leaves the content as it is.
        """
        digest = hashlib.sha256(repr((versions, len(self))).encode())
        for block, _ in self.paths.blocks():
            digest.update(block)
        for column in (self.paths.lengths, self.sizes, self.mtimes):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()


def _join(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    return None if first is None or second is None else np.concatenate([first, second])


def by_class(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N,) sorted by label, those of a class in their order; and (K + 1,) where each class begins.

    One pass over the labels for all classes.
    """
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=num_classes))])
    small = labels.astype(np.uint16) if num_classes <= 1 << 16 else labels  # numpy sorts 16 bits by radix
    return np.argsort(small, kind="stable"), starts


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, ordered by name whatever the file system's order."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: (to_nfc(entry.name), entry.name))


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def find_splits(data_dir: Path) -> dict[str, Path]:
    """split -> its folder. Class folders at the root are read as train. UserError when there is no training data."""
    if not data_dir.exists():
        make = f"python build_dataset.py --source SRC --data_dir {data_dir}"
        raise UserError(f"{data_dir}: no such dataset folder; make one: {make}")
    if not data_dir.is_dir():
        make = f"python build_dataset.py --source {data_dir} --data_dir DATA"
        raise UserError(f"{data_dir} is a file; {LAYOUT}: {make}")
    entries = _entries(data_dir)
    folders = [entry for entry in entries if not _is_hidden(entry.name) and _is_dir(entry)]
    splits: dict[str, Path] = {}
    for entry in folders:
        split = SPLIT_SYNONYMS.get(entry.name.lower(), entry.name.lower())
        if split in splits:
            both = f"{splits[split].name} and {entry.name}"
            raise UserError(f"{data_dir}: {both} are the same split; keep one of them")
        if split in SPLITS:
            splits[split] = Path(entry.path)
    if not splits and folders:
        refuse_flat_splits(data_dir, folders)
        splits["train"] = data_dir
    if "train" not in splits:
        is_flat = any(_is_image(entry.name) for entry in entries)
        table = " --labels FILE.csv --image_col A --label_col B" if is_flat else ""  # says the class of each image
        make = f"python build_dataset.py --source {data_dir}{table} --data_dir DATA"
        contents = _describe_contents(entries)
        raise UserError(f"{data_dir}: no train folder and no class folders (it holds {contents}); {LAYOUT}: {make}")
    return splits


def is_flat_split(entry: Path) -> bool:
    """True for a split without class folders, such as train_signs/ of the CS230 template."""
    return entry.is_dir() and bool(FLAT.match(entry.name)) and not any(map(_is_dir, _entries(entry)))


def refuse_flat_splits(data_dir: Path, folders: list[os.DirEntry[str]]) -> None:
    """UserError when the class folders of `data_dir` are splits without classes in them, not classes."""
    names = [entry.name for entry in folders if is_flat_split(Path(entry.path))]
    if len(names) > 1 and len(names) == len(folders):
        make = f"python build_dataset.py --source {data_dir} --data_dir DATA"
        raise UserError(f"{data_dir}: {', '.join(names)} are splits without class folders; {LAYOUT}: {make}")


def _describe_contents(entries: list[os.DirEntry[str]]) -> str:
    if num_images := sum(_is_image(entry.name) for entry in entries):
        return f"{num_images} images and no class folders"
    return ", ".join(entry.name for entry in entries[:5]) or "nothing"


def index_split(folder: Path, split: str, root: Path) -> Index:
    """List the class folders of one split. UserError: no class folders, only one, or one without images."""
    ignored: Counter[str] = Counter()
    class_folders = _class_folders(folder, root, ignored)
    listing = Listing(ignored)
    counts: list[int] = []
    for path in class_folders.values():
        num_before, ignored_before = len(listing), ignored.copy()
        list_images(listing, path, len(os.path.join(root, "")), set())
        counts.append(len(listing) - num_before)
        if not counts[-1]:
            others = describe_ignored(ignored - ignored_before)
            raise UserError(
                f"{path}: no images in this class folder ({others or 'it is empty'}); fill it or remove it "
                f"(possible: {' '.join(IMAGE_EXTENSIONS)})"
            )
    return listing.index(root, split, list(class_folders), counts)


def _class_folders(folder: Path, root: Path, ignored: Counter[str]) -> dict[str, str]:
    """class -> its folder. Everything else is counted in `ignored`."""
    folders: dict[str, str] = {}
    num_loose = 0
    for entry in _entries(folder):
        name = to_nfc(entry.name)
        if _is_hidden(entry.name):
            ignored["hidden files"] += 1
        elif not _is_dir(entry):
            num_loose += _is_image(entry.name)
        elif name in folders:
            raise UserError(f"{folder}: two class folders are called {name!r} in two encodings; join them")
        else:
            folders[name] = entry.path
    if num_loose and not folders:
        raise UserError(
            f"{folder}: {num_loose} images and no class folders; {LAYOUT}: "
            f"python build_dataset.py --source {root} --data_dir DATA"
        )
    if num_loose:
        ignored["images outside class folders"] = num_loose
    if len(folders) < 2:
        names = ", ".join(folders) or "none"
        raise UserError(f"{folder}: {len(folders)} class folders ({names}); at least two are needed")
    return folders


@dataclass
class Listing:
    """The columns of an Index while they grow, class after class."""

    ignored: Counter[str] = field(default_factory=Counter)
    names: bytearray = field(default_factory=bytearray)
    lengths: array = field(default_factory=lambda: array("H"))
    sizes: array = field(default_factory=lambda: array("q"))
    mtimes: array = field(default_factory=lambda: array("q"))
    ctimes: array = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, path: str, size: int, mtime: int, ctime: int) -> None:
        encoded = os.fsencode(path)
        self.names += encoded
        self.lengths.append(len(encoded))
        self.sizes.append(size)
        self.mtimes.append(mtime)
        self.ctimes.append(ctime)

    def index(self, root: Path, split: str, classes: list[str], counts: list[int]) -> Index:
        """An Index that takes the columns over. `counts`: the number of files of each class."""
        labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        paths = Paths.from_lengths(self.names, self.lengths)
        sizes, mtimes, ctimes = (np.frombuffer(column, np.int64) for column in (self.sizes, self.mtimes, self.ctimes))
        return Index(root, split, classes, paths, labels, sizes, mtimes, ctimes, self.ignored)


def list_images(listing: Listing, folder: str, prefix: int, visited: set[tuple[int, int]]) -> None:
    """Add the images below a class folder, sub-folders too; a folder is entered once, whatever leads to it.

    `prefix`: the number of characters of a path that belong to the root.
    """
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in visited:
        listing.ignored["links that lead back"] += 1
        return
    visited.add((status.st_dev, status.st_ino))
    for entry in _entries(folder):
        name = entry.name.lower()
        if _is_hidden(name):
            listing.ignored["hidden files"] += 1
            continue
        if not _is_image(name) and not _is_dir(entry):
            listing.ignored[os.path.splitext(name)[1] or "files without extension"] += 1
            continue
        try:
            status = entry.stat()
            size, mode = status.st_size, status.st_mode
            mtime, ctime = status.st_mtime_ns, status.st_ctime_ns
        except OSError:  # a dangling link is listed: it fails when it is read, and is reported then
            size, mode = -1, stat.S_IFREG
            mtime, ctime = 0, 0
        if stat.S_ISDIR(mode):
            list_images(listing, entry.path, prefix, visited)
        elif stat.S_ISREG(mode):
            listing.add(entry.path[prefix:], size, mtime, ctime)
        else:
            listing.ignored["pipes, sockets and devices"] += 1


def check_classes(classes: list[str], expected: list[str], where: str, reference: str) -> None:
    """UserError listing the missing and extra classes of `where`, unless they are those of `reference`."""
    given, required = set(map(to_nfc, classes)), set(map(to_nfc, expected))
    parts = []
    for title, names in (("missing", required - given), ("extra", given - required)):
        if names:
            parts.append(f"{title}: {', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''}")
    if parts:
        raise UserError(
            f"{where}: its classes are not those of {reference} ({'; '.join(parts)}); "
            "labels are positions in the list of classes, so both must have the same"
        )


def describe_ignored(ignored: Counter[str]) -> str:
    """For example "412 .heic files ignored: convert them, or install pillow-heif"; "" when nothing was ignored."""
    parts = []
    for kind, count in ignored.most_common():
        noun = f"{kind} files" if kind.startswith(".") else kind
        advice = f": convert them, or install {ADVICE[kind]}" if kind in ADVICE else ""
        parts.append(f"{count} {noun} ignored{advice}")
    return "; ".join(parts)
