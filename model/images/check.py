"""A look at a dataset folder: broken files, oddities, duplicates, label conflicts. Decodes in worker processes."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from model.images.decode import ImageError, decode, read_bytes
from model.images.index import check_classes, describe_ignored, find_splits, index_split
from utils import UserError, write_json

MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"RIFF", "WEBP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
USUAL = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
REPORT = "dataset_report.json"


def look(path: str) -> dict[str, Any]:
    """What one file is: format, width, height, digests of its bytes and pixels; or why it cannot be used."""
    try:
        data = read_bytes(path)
        kind = next((name for magic, name in MAGIC if data.startswith(magic)), "unknown")
        image = decode(data, path)
    except ImageError as error:
        return {"error": str(error)}
    pixels = hashlib.blake2b(image.tobytes() + repr(image.shape).encode(), digest_size=12).hexdigest()
    return {"format": kind, "width": image.shape[1], "height": image.shape[0], "pixels": pixels}


def look_at(paths: list[str]) -> list[dict[str, Any]]:
    return [look(path) for path in paths]


def look_at_all(paths: list[str]) -> Iterable[dict[str, Any]]:
    """look() of every file, in processes; a file that kills its process is named, and the rest go on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chunks = [paths[at : at + 256] for at in range(0, len(paths), 256)]
    while chunks:
        with ProcessPoolExecutor(cores) as pool:
            futures = [pool.submit(look_at, chunk) for chunk in chunks]
            for number, future in enumerate(futures):
                try:
                    yield from future.result()
                except BrokenProcessPool:
                    yield from _one_by_one(chunks[number])
                    chunks = chunks[number + 1 :]
                    break
            else:
                return


def _one_by_one(paths: list[str]) -> Iterable[dict[str, Any]]:
    for path in paths:
        with ProcessPoolExecutor(1) as pool:
            try:
                yield pool.submit(look, path).result()
            except BrokenProcessPool:
                yield {"error": f"{path}: crashes the decoder"}


def check(data_dir: Path) -> dict[str, Any]:
    """The report on a dataset folder, also written to dataset_report.json in it when it can be."""
    splits = find_splits(data_dir)
    report: dict[str, Any] = {"splits": {}, "broken": [], "oddities": [], "ignored": {}}
    files: list[dict[str, Any]] = []
    first: list[str] | None = None
    for split, where in splits.items():
        index = index_split(where, split, data_dir)
        try:
            first = first or index.classes
            check_classes(index.classes, first, str(where), str(next(iter(splits.values()))))
        except UserError as error:
            report["oddities"].append(str(error))
        counts = np.bincount(index.labels, minlength=len(index.classes)).tolist()
        report["splits"][split] = dict(sorted(zip(index.classes, counts, strict=True)))
        if index.ignored:
            report["ignored"][split] = describe_ignored(index.ignored)
        files += [
            {"path": path, "split": split, "label": index.classes[label]}
            for path, label in zip(index.paths, index.labels.tolist(), strict=True)
        ]
    for file, seen in zip(files, look_at_all([str(data_dir / file["path"]) for file in files]), strict=True):
        file.update(seen)
    report["broken"] = [file["error"] for file in files if "error" in file]
    good = [file for file in files if "error" not in file]
    report |= sizes(good)
    report["oddities"] += oddities(good, report)
    report |= doubles(good)
    if os.access(data_dir, os.W_OK):
        write_json(data_dir / REPORT, report)
    return report


def sizes(files: list[dict[str, Any]]) -> dict[str, Any]:
    def spread(key: str) -> list[int]:
        values = sorted(file[key] for file in files)
        return [values[0], values[len(values) // 2], values[-1]] if values else []

    formats = Counter(file["format"] for file in files)
    return {"formats": dict(formats.most_common()), "width": spread("width"), "height": spread("height")}


def oddities(files: list[dict[str, Any]], report: dict[str, Any]) -> list[str]:
    """What a person would want to look at: rare formats, wrong extensions, far-off shapes, unequal classes."""
    found: list[str] = []
    total = len(files)
    for name, count in report["formats"].items():
        if count <= max(1, total // 100) and total >= 20:
            found.append(f"only {count} {name} among {total} images: {_names(f for f in files if f['format'] == name)}")
    wrong = [f for f in files if USUAL.get(Path(f["path"]).suffix.lower()) != f["format"]]
    if wrong:
        found.append(f"{len(wrong)} files whose extension is not their format: {_names(wrong)}")
    tiny = [f for f in files if min(f["width"], f["height"]) < 8]
    if tiny:
        found.append(f"{len(tiny)} images under 8 px: {_names(tiny)}")
    long = [f for f in files if max(f["width"], f["height"]) > 4 * min(f["width"], f["height"])]
    if long:
        found.append(f"{len(long)} images more than four times as long as wide: {_names(long)}")
    if report["width"] and report["width"][2] > 4 * report["width"][0]:
        small, large = (
            min(files, key=lambda f: f["width"] * f["height"]),
            max(files, key=lambda f: f["width"] * f["height"]),
        )
        found.append(
            "sizes from {width} x {height} ({path})".format(**small) + " to {width} x {height} ({path})".format(**large)
        )
    for split, counts in report["splits"].items():
        if max(counts.values()) > 3 * min(counts.values()):
            few, many = min(counts, key=counts.get), max(counts, key=counts.get)
            found.append(
                f"{split}: unequal classes: {few} {counts[few]}, {many} {counts[many]}; see sampler and class_weights"
            )
    for split in ("valid", "test"):
        if split not in report["splits"]:
            found.append(f"no {split} split")
    return found


def _names(files: Iterable[dict[str, Any]], most: int = 3) -> str:
    names = [file["path"] for file in files]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def doubles(files: list[dict[str, Any]]) -> dict[str, Any]:
    """Groups of files with the same pixels: within a split, across splits, and with different labels."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in files:
        groups[file["pixels"]].append(file)
    same = [group for group in groups.values() if len(group) > 1]
    across = [group for group in same if len({file["split"] for file in group}) > 1]
    conflicts = [group for group in same if len({file["label"] for file in group}) > 1]
    titles = {"duplicates": same, "duplicates_across_splits": across, "label_conflicts": conflicts}
    return {title: [[file["path"] for file in group] for group in found] for title, found in titles.items()}


def describe(report: dict[str, Any]) -> list[str]:
    """The report in lines for people."""
    lines = []
    for split, counts in report["splits"].items():
        shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:12])
        lines.append(
            f"{split:6}{sum(counts.values()):8,} images, {len(counts)} classes: "
            f"{shown}{', ...' if len(counts) > 12 else ''}"
        )
    lines.append("formats " + ", ".join(f"{name} {count}" for name, count in report["formats"].items()))
    for key in ("width", "height"):
        if report[key]:
            lines.append(f"{key} {report[key][0]} to {report[key][2]} px, median {report[key][1]}")
    lines += [f"ignored in {split}: {text}" for split, text in report["ignored"].items()]
    lines += [f"odd: {text}" for text in report["oddities"]]
    for title in ("duplicates", "duplicates_across_splits", "label_conflicts"):
        groups = report[title]
        if groups:
            lines.append(f"{title.replace('_', ' ')}: {len(groups)} groups, for example {' = '.join(groups[0][:3])}")
    lines.append(f"broken: {len(report['broken'])} files" + "".join(f"\n  {text}" for text in report["broken"][:20]))
    return lines
