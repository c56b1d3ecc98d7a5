"""Decoded base images of a split as one uint8 memory map, (N, S, S, 3), and the digests of the files.

A cache is found by the dataset's place, split, size and resize mode, and is stale when any name, size or
mtime differs. The manifest is written last: without it there is no cache.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.images import ImageError, base_image, decode, read_bytes
from model.index import Index
from utils import UserError, key64, read_json, write_json

FORMAT = 1
MAX_AUTO_BYTES = 8 << 30


@dataclass
class Decoded:
    """What a pass over the files gave: base images or None when they are not kept, digests, and bad files."""

    images: np.ndarray | None  # (N, S, S, 3) uint8
    digests: list[str]
    bad: dict[int, str]  # position -> reason
    form: str  # "disk", "ram" or "off"


def default_dir(data_dir: Path) -> Path:
    """`.cache` beside the dataset folder, or the user's cache folder when that place cannot be written."""
    beside = data_dir.resolve().parent
    if os.access(beside, os.W_OK):
        return beside / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "experiment-folders"


def open_decoded(index: Index, size: int, resize: str, form: str, cache_dir: Path) -> Decoded:
    """The decoded images of `index`, from the cache or by decoding all files once. UserError for files that cannot be used."""
    stem = f"{index.root.resolve().name}-{index.split}-{size}{resize[0]}-{key64(str(index.root.resolve()), index.split, size, resize):016x}"
    manifest_path, data_path = cache_dir / f"{stem}.json", cache_dir / f"{stem}.npy"
    signature = [FORMAT, hashlib.sha256(json.dumps([index.paths, index.sizes, index.mtimes]).encode()).hexdigest()]
    found = _open(manifest_path, data_path, signature, want_images=form != "off")
    if found:
        if form == "ram" and found.images is not None:
            found.images = np.array(found.images)
        found.form = form
        return found
    return _build(index, size, resize, form, manifest_path, data_path, signature)


def choose_form(wanted: str, num_images: int, size: int, cache_dir: Path) -> str:
    """"auto" -> disk when the images fit in 8 GiB and a quarter of the free disk, else off; "device" begins as disk."""
    if wanted not in ("auto", "device"):
        return wanted
    place = cache_dir
    while not place.exists():
        place = place.parent
    num_bytes = num_images * size * size * 3
    fits = num_bytes <= min(MAX_AUTO_BYTES, shutil.disk_usage(place).free / 4) and os.access(place, os.W_OK)
    return "disk" if fits else "ram" if wanted == "device" else "off"


def _open(manifest_path: Path, data_path: Path, signature: list, want_images: bool) -> Decoded | None:
    try:
        manifest = read_json(manifest_path)
        if manifest["signature"] != signature or (want_images and not manifest["file"]):
            return None
        images = np.load(manifest_path.with_name(manifest["file"]), mmap_mode="r") if want_images else None
        bad = {int(position): reason for position, reason in manifest["bad"].items()}
        if images is not None and len(images) != len(manifest["digests"]):
            return None
        return Decoded(images, manifest["digests"], bad, "disk")
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None


def _build(index: Index, size: int, resize: str, form: str, manifest_path: Path, data_path: Path, signature: list) -> Decoded:
    """One pass over all files: digest each, decode each when images are kept, and write the cache."""
    shape = (len(index), size, size, 3)
    temporary = None
    try:
        if form == "disk":
            manifest_path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=".tmp-", suffix=".npy", dir=manifest_path.parent)
            os.close(descriptor)
            images: np.ndarray | None = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        else:
            images = np.empty(shape, np.uint8) if form == "ram" else None
        decoded = Decoded(images, [""] * len(index), {}, form)
        _fill(decoded, index, size, resize)
        if form == "disk":
            images.flush()  # type: ignore[union-attr]
            os.replace(temporary, data_path)
            temporary = None
            decoded.images = np.load(data_path, mmap_mode="r")
        if manifest_path.parent.is_dir() or os.access(manifest_path.parent.parent, os.W_OK):
            manifest_path.parent.mkdir(parents=True, exist_ok=True)
            manifest = {"signature": signature, "file": data_path.name if form == "disk" else None, "digests": decoded.digests}
            write_json(manifest_path, manifest | {"bad": decoded.bad})
        return decoded
    except OSError as error:
        raise UserError(f"cache: {manifest_path.parent}: {error.strerror}; give --cache_dir, or cache: off", 5) from None
    finally:
        if temporary:
            os.unlink(temporary)


def _fill(decoded: Decoded, index: Index, size: int, resize: str) -> None:
    root = str(index.root)

    def work(position: int) -> None:
        path = os.path.join(root, index.paths[position])
        try:
            data = read_bytes(path)
            decoded.digests[position] = hashlib.blake2b(data, digest_size=16).hexdigest()
            if decoded.images is not None:
                decoded.images[position] = base_image(decode(data, path), size, resize)
        except ImageError as error:
            decoded.bad[position] = str(error)

    def chunk(positions: range) -> int:
        for position in positions:
            work(position)
        return len(positions)

    chunks = [range(at, min(at + 512, len(index))) for at in range(0, len(index), 512)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(8, cores)) as pool:
        show = _progress(len(index), f"reading {index.split}")
        for done in pool.map(chunk, chunks):
            show(done)
        show(0)


def _progress(total: int, title: str) -> Callable[[int], None]:
    """A bar on a terminal for passes that take a while; nothing elsewhere."""
    if total < 5000 or sys.stderr is None or not sys.stderr.isatty():
        return lambda done: None
    from tqdm import tqdm

    bar = tqdm(total=total, desc=title, unit="image", leave=False)
    return lambda done: bar.update(done) if done else bar.close()
