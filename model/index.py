"""A dataset folder -> its splits, classes and files. Reads names and sizes, no pixels."""

import os
import stat
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from include import IMAGE_EXTENSIONS, SPLIT_SYNONYMS, SPLITS
from utils import UserError

LAYOUT = "a dataset is a folder {train,valid,test}/CLASS/IMAGE"
JUNK = {".ds_store", "thumbs.db", "desktop.ini"}
ADVICE = {".heic": "pillow-heif", ".heif": "pillow-heif", ".avif": "pillow-avif-plugin"}


@dataclass
class Index:
    """The files of one split, in a fixed order. `paths` are relative to `root`; `labels` index `classes`."""

    root: Path
    split: str
    classes: list[str]  # NFC
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # bytes; -1 for what cannot be looked at (a dangling link)
    mtimes: list[int] = field(default_factory=list)  # ns
    ignored: Counter[str] = field(default_factory=Counter)  # reason -> count

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, positions: list[int], split: str) -> "Index":
        """The files at `positions`, as a split of its own."""
        pick = [[column[i] for i in positions] for column in (self.paths, self.labels, self.sizes, self.mtimes)]
        return Index(self.root, split, self.classes, *pick)  # type: ignore[arg-type]


def nfc(name: str) -> str:
    """One spelling of a name, whichever way its file system composes accents."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _entries(folder: str | Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: nfc(entry.name))


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
    index = Index(root, split, list(folders), ignored=ignored)
    for label, path in enumerate(folders.values()):
        before, ignored_before = len(index), ignored.copy()
        _list_images(index, path, len(os.path.join(root, "")), label, set())
        if len(index) == before:
            others = describe_ignored(ignored - ignored_before)
            raise UserError(
                f"{path}: no images in this class folder ({others or 'it is empty'}); fill it or remove it "
                f"(read are {' '.join(IMAGE_EXTENSIONS)})"
            )
    return index


def _list_images(index: Index, folder: str, prefix: int, label: int, visited: set[tuple[int, int]]) -> None:
    """Add the images below a class folder, sub-folders too; a folder is entered once, whatever leads to it.

    `prefix`: how many characters of a path are the root's.
    """
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in visited:
        index.ignored["links that lead back"] += 1
        return
    visited.add((status.st_dev, status.st_ino))
    for entry in _entries(folder):
        name = entry.name.lower()
        if _is_hidden(name):
            index.ignored["hidden files"] += 1
            continue
        is_image = name.endswith(IMAGE_EXTENSIONS)
        if not is_image and not _is_dir(entry):
            index.ignored[os.path.splitext(name)[1] or "files without extension"] += 1
            continue
        try:
            status = entry.stat()
            size, mtime, mode = status.st_size, status.st_mtime_ns, status.st_mode
        except OSError:  # a dangling link: a broken image, found when it is to be read
            size, mtime, mode = -1, 0, stat.S_IFREG
        if stat.S_ISDIR(mode):
            _list_images(index, entry.path, prefix, label, visited)
        elif stat.S_ISREG(mode):
            index.paths.append(entry.path[prefix:])
            index.labels.append(label)
            index.sizes.append(size)
            index.mtimes.append(mtime)
        else:
            index.ignored["pipes, sockets and devices"] += 1


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
