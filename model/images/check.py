"""A check of a dataset folder: broken files, oddities, duplicates, label conflicts. Decodes in worker processes."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from model.images.decode import ImageError, decode, read_bytes
from model.images.index import check_classes, describe_ignored
from model.images.tables.splits import list_splits
from utils import JsonObject, UserError, num_cores, write_json

REPORT = "dataset_report.json"
CHUNK = 256  # files that a process decodes at a time
MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"RIFF", "WEBP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
FORMAT_OF_EXTENSION = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


class CheckReport(TypedDict):
    """dataset_report.json."""

    splits: dict[str, dict[str, int]]  # split -> class -> number of images
    broken: list[str]
    oddities: list[str]
    ignored: dict[str, str]  # split -> what was ignored in it
    formats: dict[str, int]  # number of images of each
    width: list[int]  # least, median, most
    height: list[int]
    duplicates: list[list[str]]  # groups of files with equal pixels
    duplicates_across_splits: list[list[str]]
    label_conflicts: list[list[str]]
    groups: NotRequired[str]  # how many, of how many images; where there are any


@dataclass(frozen=True)
class Content:
    """The content of a file."""

    format: str
    width: int
    height: int
    pixels: str  # digest


@dataclass(frozen=True)
class CheckedImage:
    """One file that can be used."""

    path: str
    split: str
    label: str
    content: Content

    @property
    def short(self) -> int:
        return min(self.content.width, self.content.height)

    @property
    def long(self) -> int:
        return max(self.content.width, self.content.height)

    @property
    def size(self) -> str:
        return f"{self.content.width} x {self.content.height} ({self.path})"


# --- decoding -------------------------------------------------------------------------------------------


def inspect(path: str) -> Content | str:
    """What one file holds, or why it cannot be used."""
    try:
        data = read_bytes(path)
        kind = next((name for magic, name in MAGIC if data.startswith(magic)), "unknown")
        image = decode(data, path)
    except ImageError as error:
        return str(error)
    digest = hashlib.blake2b(image.tobytes() + repr(image.shape).encode(), digest_size=12).hexdigest()
    return Content(kind, image.shape[1], image.shape[0], digest)


def _inspect_chunk(paths: list[str]) -> list[Content | str]:
    return [inspect(path) for path in paths]


def inspect_all(paths: list[str]) -> Iterator[Content | str]:
    """inspect() of every file, in processes; a file that kills its process is named, and the check goes on."""
    chunks = [paths[first : first + CHUNK] for first in range(0, len(paths), CHUNK)]
    while chunks:
        with ProcessPoolExecutor(num_cores()) as pool:
            futures = [pool.submit(_inspect_chunk, chunk) for chunk in chunks]
            for number, future in enumerate(futures):
                try:
                    yield from future.result()
                except BrokenProcessPool:
                    # Find the file in this chunk, then start a new pool for the chunks after it.
                    yield from _inspect_one_by_one(chunks[number])
                    chunks = chunks[number + 1 :]
                    break
            else:
                return


def _inspect_one_by_one(paths: list[str]) -> Iterator[Content | str]:
    for path in paths:
        with ProcessPoolExecutor(1) as pool:
            try:
                yield pool.submit(inspect, path).result()
            except BrokenProcessPool:
                yield f"{path}: crashes the decoder"


# --- the report -----------------------------------------------------------------------------------------


def check(data_dir: Path) -> CheckReport:
    """The report on a dataset folder; also written into it, as dataset_report.json, where that is allowed."""
    # List the files.
    splits: dict[str, dict[str, int]] = {}
    ignored: dict[str, str] = {}
    oddities: list[str] = []
    files: list[tuple[str, str, str]] = []  # path, split, label
    listed = list_splits(data_dir)
    listed.check_groups()
    folders = listed.folders
    first_classes: list[str] = []
    for split, folder in folders.items():
        index = listed.index(split)
        first_classes = first_classes or index.classes
        try:
            check_classes(index.classes, first_classes, str(folder), str(next(iter(folders.values()))))
        except UserError as error:
            oddities.append(str(error))
        counts = np.bincount(index.labels, minlength=len(index.classes)).tolist()
        splits[split] = dict(sorted(zip(index.classes, counts, strict=True)))
        if index.ignored:
            ignored[split] = describe_ignored(index.ignored)
        labels = (index.classes[label] for label in index.labels.tolist())
        files += [(path, split, label) for path, label in zip(index.paths, labels, strict=True)]
    # Decode them.
    contents = inspect_all([str(data_dir / path) for path, _, _ in files])
    broken: list[str] = []
    images: list[CheckedImage] = []
    for (path, split, label), content in zip(files, contents, strict=True):
        if isinstance(content, str):
            broken.append(content)
        else:
            images.append(CheckedImage(path, split, label, content))
    # Say what is in them.
    formats = dict(Counter(image.content.format for image in images).most_common())
    report: CheckReport = {
        "splits": splits,
        "broken": broken,
        "oddities": oddities + find_oddities(images, formats, splits),
        "ignored": ignored,
        "formats": formats,
        "width": spread([image.content.width for image in images]),
        "height": spread([image.content.height for image in images]),
        **find_duplicates(images),
    }
    if listed.groups:
        report["groups"] = listed.groups.describe()
    if os.access(data_dir, os.W_OK):
        written: JsonObject = {**report}
        write_json(data_dir / REPORT, written)
    return report


def spread(values: list[int]) -> list[int]:
    """[least, median, most], or nothing of nothing."""
    values = sorted(values)
    return [values[0], values[len(values) // 2], values[-1]] if values else []


def find_oddities(images: list[CheckedImage], formats: dict[str, int], splits: dict[str, dict[str, int]]) -> list[str]:
    """What a person should look at: rare formats, wrong extensions, unusual shapes, unequal classes."""
    oddities: list[str] = []
    for name, count in formats.items():
        if count <= max(1, len(images) // 100) and len(images) >= 20:
            rare = [image for image in images if image.content.format == name]
            oddities.append(f"only {count} {name} among {len(images)} images: {_names(rare)}")
    for title, is_odd in ODD_IMAGES.items():
        if odd := [image for image in images if is_odd(image)]:
            oddities.append(f"{len(odd)} {title}: {_names(odd)}")
    widths = [image.content.width for image in images]
    if widths and max(widths) > 4 * min(widths):
        areas = [image.content.width * image.content.height for image in images]
        small, large = images[areas.index(min(areas))], images[areas.index(max(areas))]
        oddities.append(f"sizes from {small.size} to {large.size}")
    for split, counts in splits.items():
        few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        if counts[many] > 3 * counts[few]:
            shares = f"{few} {counts[few]}, {many} {counts[many]}"
            oddities.append(f"{split}: unequal classes: {shares}; see sampler and class_weights")
    oddities += [f"no {split} split" for split in ("valid", "test") if split not in splits]
    return oddities


def _has_wrong_extension(image: CheckedImage) -> bool:
    return FORMAT_OF_EXTENSION.get(Path(image.path).suffix.lower()) != image.content.format


ODD_IMAGES: dict[str, Callable[[CheckedImage], bool]] = {
    "files whose extension is not their format": _has_wrong_extension,
    "images under 8 px": lambda image: image.short < 8,
    "images more than four times as long as wide": lambda image: image.long > 4 * image.short,
}


def _names(images: Iterable[CheckedImage], most: int = 3) -> str:
    names = [image.path for image in images]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


class Duplicates(TypedDict):
    duplicates: list[list[str]]
    duplicates_across_splits: list[list[str]]
    label_conflicts: list[list[str]]


def find_duplicates(images: list[CheckedImage]) -> Duplicates:
    """Groups of files with equal pixels: all of them, those across splits, and those with different labels."""
    groups: dict[str, list[CheckedImage]] = defaultdict(list)
    for image in images:
        groups[image.content.pixels].append(image)
    equal = [group for group in groups.values() if len(group) > 1]
    across = [group for group in equal if len({image.split for image in group}) > 1]
    conflicts = [group for group in equal if len({image.label for image in group}) > 1]
    return {
        "duplicates": _paths(equal),
        "duplicates_across_splits": _paths(across),
        "label_conflicts": _paths(conflicts),
    }


def _paths(groups: list[list[CheckedImage]]) -> list[list[str]]:
    return [[image.path for image in group] for group in groups]


def describe(report: CheckReport) -> list[str]:
    """The report in lines for people."""
    lines = []
    for split, counts in report["splits"].items():
        shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:12])
        shown += ", ..." if len(counts) > 12 else ""
        lines.append(f"{split:6}{sum(counts.values()):8,} images, {len(counts)} classes: {shown}")
    lines.append("formats " + ", ".join(f"{name} {count}" for name, count in report["formats"].items()))
    for title, values in (("width", report["width"]), ("height", report["height"])):
        if values:
            lines.append(f"{title} {values[0]} to {values[2]} px, median {values[1]}")
    lines += [f"groups {report['groups']}"] if "groups" in report else []
    lines += [f"ignored in {split}: {text}" for split, text in report["ignored"].items()]
    lines += [f"odd: {text}" for text in report["oddities"]]
    for title, groups in (
        ("duplicates", report["duplicates"]),
        ("duplicates across splits", report["duplicates_across_splits"]),
        ("label conflicts", report["label_conflicts"]),
    ):
        if groups:
            lines.append(f"{title}: {len(groups)} groups, for example {' = '.join(groups[0][:3])}")
    lines.append(f"broken: {len(report['broken'])} files" + "".join(f"\n  {text}" for text in report["broken"][:20]))
    return lines
