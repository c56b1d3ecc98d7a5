"""A dataset folder -> its splits, classes and files. Reads names and sizes, no pixels."""

import os
import stat
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from include import IMAGE_EXTENSIONS, SPLIT_SYNONYMS, SPLITS
from utils import UserError

JUNK = {".ds_store", "thumbs.db", "desktop.ini"}
ADVICE = {".heic": "pillow-heif", ".heif": "pillow-heif", ".avif": "pillow-avif-plugin"}


@dataclass
class Index:
    """The files of one split, in a fixed order. `paths` are relative to `root`; `labels` index `classes`."""

    root: Path
    split: str
    classes: list[str]
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    mtimes: list[int] = field(default_factory=list)  # ns
    ignored: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, positions: list[int], split: str) -> "Index":
        """The files at `positions`, as a split of its own."""
        pick = [[column[i] for i in positions] for column in (self.paths, self.labels, self.sizes, self.mtimes)]
        return Index(self.root, split, self.classes, *pick)  # type: ignore[arg-type]


def find_splits(data_dir: Path) -> dict[str, Path]:
    """split -> its folder. Class folders at the root are read as train. UserError when there is nothing to read."""
    if not data_dir.exists():
        raise UserError(f"{data_dir}: no such dataset folder; make one: python build_dataset.py --source SRC --data_dir {data_dir}")
    if not data_dir.is_dir():
        raise UserError(f"{data_dir} is a file; a dataset is a folder {{train,valid,test}}/CLASS/IMAGE: "
                        f"python build_dataset.py --source {data_dir} --data_dir DATA")  # fmt: skip
    found: dict[str, Path] = {}
    folders = [entry for entry in os.scandir(data_dir) if not entry.name.startswith(".") and entry.is_dir()]
    for entry in sorted(folders, key=lambda e: e.name):
        split = SPLIT_SYNONYMS.get(entry.name.lower(), entry.name.lower())
        if split in SPLITS:
            if split in found:
                raise UserError(f"{data_dir}: {found[split].name} and {entry.name} are the same split; keep one of them")
            found[split] = Path(entry.path)
    if not found and folders:
        found["train"] = data_dir
    if "train" not in found:
        names = sorted(entry.name for entry in os.scandir(data_dir))[:5]
        raise UserError(f"{data_dir}: no train folder and no class folders (it holds {', '.join(names) or 'nothing'}); "
                        f"a dataset is a folder {{train,valid,test}}/CLASS/IMAGE")  # fmt: skip
    return found


def index_split(folder: Path, split: str, root: Path) -> Index:
    """List the class folders of one split. UserError for an empty class, a lone class, or images without class folders."""
    ignored: Counter[str] = Counter()
    classes, loose = [], 0
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith(".") or entry.name.lower() in JUNK:
            ignored["hidden files"] += 1
        elif entry.is_dir():
            classes.append(entry.name)
        else:
            loose += entry.name.lower().endswith(IMAGE_EXTENSIONS)
    if loose and not classes:
        raise UserError(f"{folder}: {loose} images lie beside each other, in no class folders; {{train,valid,test}}/CLASS/IMAGE is wanted")
    if loose:
        ignored["images outside class folders"] += loose
    if len(classes) < 2:
        raise UserError(f"{folder}: {len(classes)} class folders ({', '.join(classes) or 'none'}); at least two are wanted")
    index = Index(root, split, classes, ignored=ignored)
    for label, name in enumerate(classes):
        before = len(index)
        visited: set[tuple[int, int]] = set()
        _list_images(index, folder / name, label, visited)
        if len(index) == before:
            raise UserError(f"{folder / name}: no images in this class folder; fill it or remove it (read are {' '.join(IMAGE_EXTENSIONS)})")
    return index


def _list_images(index: Index, folder: Path, label: int, visited: set[tuple[int, int]]) -> None:
    """Add the images below a class folder, sub-folders too; a folder is entered once, whatever links lead to it."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in visited:
        index.ignored["links that lead back"] += 1
        return
    visited.add((status.st_dev, status.st_ino))
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        name = entry.name.lower()
        if name.startswith(".") or name in JUNK:
            index.ignored["hidden files"] += 1
            continue
        if not name.endswith(IMAGE_EXTENSIONS):
            if entry.is_dir():
                _list_images(index, Path(entry.path), label, visited)
            else:
                index.ignored[os.path.splitext(name)[1] or "files without extension"] += 1
            continue
        try:
            status = entry.stat()
        except OSError:
            index.ignored["dangling links"] += 1
            continue
        if stat.S_ISREG(status.st_mode):
            index.paths.append(os.path.relpath(entry.path, index.root))
            index.labels.append(label)
            index.sizes.append(status.st_size)
            index.mtimes.append(status.st_mtime_ns)
        elif stat.S_ISDIR(status.st_mode):
            _list_images(index, Path(entry.path), label, visited)
        else:
            index.ignored["pipes, sockets and devices"] += 1


def check_classes(classes: list[str], wanted: list[str], where: str, reference: str) -> None:
    """UserError that lists missing and extra classes; the numbers of the classes depend on the list."""
    have, want = ({unicodedata.normalize("NFC", name) for name in names} for names in (classes, wanted))
    if have == want:
        return
    parts = [f"{title} {', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''}"
             for title, names in (("missing", want - have), ("extra", have - want)) if names]  # fmt: skip
    raise UserError(f"{where}: its classes are not those of {reference}: {'; '.join(parts)}")


def describe_ignored(ignored: Counter[str]) -> str:
    """"412 .heic files ignored: convert them, or install pillow-heif" and the like; "" when nothing was."""
    parts = []
    for kind, count in ignored.most_common():
        noun = f"{kind} files" if kind.startswith(".") else kind
        advice = f": convert them, or install {ADVICE[kind]}" if kind in ADVICE else ""
        parts.append(f"{count} {noun} ignored{advice}")
    return "; ".join(parts)
