"""Decoded base images of a split as one uint8 memory map, (N, S, S, 3), and the digests of the files.

A cache is found by the dataset's place, split, size and resize mode, and is stale when any name, size or
mtime differs. Images lie in a file named after that state; the manifest that names it is written last, so
that at any instant there is a whole cache or none. `cache: off` keeps the digests alone.
"""

import contextlib
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

from include import EXIT_SYSTEM
from model.images import ImageError, base_image, decode, read_bytes
from model.index import Index
from utils import UserError, cache_home, key64, read_json, write_atomic

FORMAT = 2
MAX_AUTO_BYTES = 8 << 30
DIGEST = 32  # hexadecimal digits of a file's digest


@dataclass
class Decoded:
    """What a pass over the files gave: base images or None when they are not kept, digests, and bad files."""

    images: np.ndarray | None  # (N, S, S, 3) uint8; zeros where a file is bad
    digests: list[str]
    bad: dict[int, str]  # position -> reason
    form: str  # "disk", "ram" or "off"
    note: str = ""  # why it is not the form that was wanted


def default_dir(data_dir: Path) -> Path:
    """`.cache` beside the dataset folder, or the user's cache folder when that place cannot be written."""
    beside = data_dir.resolve().parent / ".cache"
    if os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return beside
    return cache_home()


def open_decoded(index: Index, size: int, resize: str, wanted: str, cache_dir: Path) -> Decoded:
    """The decoded images of `index`, from the cache or by reading every file once.

    `wanted`: auto, disk, ram, off, or device (which begins as auto). "auto" is disk when the images fit in
    8 GiB and a quarter of the free disk, else off. UserError (exit code 5) when "disk" cannot be written.
    """
    root = index.root.resolve()
    key = key64(os.fsencode(root).hex(), index.split, size, resize)
    stem = f"{root.name[:60]}-{index.split}-{size}{resize}-{key:016x}"
    state = index.state(FORMAT)
    found = _open(cache_dir / f"{stem}.json", state, want_images=wanted != "off")
    if found and not _repaired(found, index):
        if wanted == "ram" and found.images is not None:
            found.images, found.form = np.array(found.images), "ram"
        return found
    form = _choose(wanted, len(index) * size * size * 3, cache_dir)
    try:
        return _build(index, size, resize, form, cache_dir, stem, state)
    except OSError as error:
        if wanted not in ("auto", "device"):
            reason = f"cache: {cache_dir}: {error.strerror}"
            raise UserError(f"{reason}; give another --cache_dir, or set cache to off", EXIT_SYSTEM) from None
        form = "ram" if wanted == "device" else "off"
        found = _build(index, size, resize, form, cache_dir, stem, state)
        found.note = f"no cache on disk: {cache_dir}: {error.strerror}"
        return found


def _choose(wanted: str, num_bytes: int, cache_dir: Path) -> str:
    if wanted not in ("auto", "device"):
        return wanted
    place = cache_dir.absolute()
    while not place.exists():
        place = place.parent
    fits = num_bytes <= min(MAX_AUTO_BYTES, shutil.disk_usage(place).free / 4) and os.access(place, os.W_OK)
    return "disk" if fits else "ram" if wanted == "device" else "off"


def _open(manifest_path: Path, state: str, want_images: bool) -> Decoded | None:
    try:
        manifest = read_json(manifest_path)
        if manifest["state"] != state or (want_images and not manifest["file"]):
            return None
        joined = manifest["digests"]
        digests = [joined[at : at + DIGEST] for at in range(0, len(joined), DIGEST)]
        images = None
        if want_images:
            images = np.load(manifest_path.with_name(manifest["file"]), mmap_mode="r").view(np.ndarray)
            if len(images) != len(digests):
                return None
        bad = {int(position): reason for position, reason in manifest["bad"].items()}
        return Decoded(images, digests, bad, "disk" if want_images else "off")
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _repaired(found: Decoded, index: Index) -> bool:
    """Whether a file that was bad can be used now: permissions leave no trace in sizes and mtimes."""
    for position in found.bad:
        with contextlib.suppress(ImageError):
            path = index.root / index.paths[position]
            decode(read_bytes(path), path)
            return True
    return False


def _build(index: Index, size: int, resize: str, form: str, cache_dir: Path, stem: str, state: str) -> Decoded:
    """One pass over all files: digest and decode each; then commit. OSError: disk full, read-only."""
    shape = (len(index), size, size, 3)
    temporary = None
    try:
        images: np.ndarray | None = None
        if form == "disk":
            cache_dir.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=".tmp-", suffix=".npy", dir=cache_dir)
            try:
                mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
                if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and no crash while writing
                    os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)
            images = mapped.view(np.ndarray)
        elif form == "ram":
            images = np.zeros(shape, np.uint8)
        decoded = Decoded(images, [""] * len(index), {}, form)
        _fill(decoded, index, size, resize)
        name = f"{stem}-{state[:12]}.npy" if form == "disk" else None
        if name:
            mapped.flush()
            os.chmod(temporary, 0o644)  # type: ignore[arg-type]
            os.replace(temporary, cache_dir / name)  # type: ignore[arg-type]
            temporary = None
            decoded.images = np.load(cache_dir / name, mmap_mode="r").view(np.ndarray)
        manifest = {"state": state, "file": name, "bad": decoded.bad, "digests": "".join(decoded.digests)}
        with contextlib.nullcontext() if name else contextlib.suppress(OSError):
            cache_dir.mkdir(parents=True, exist_ok=True)
            write_atomic(cache_dir / f"{stem}.json", json.dumps(manifest))
            _remove_stale(cache_dir, stem, name)
        return decoded
    finally:
        if temporary:
            os.unlink(temporary)


def _remove_stale(cache_dir: Path, stem: str, keep: str | None) -> None:
    """Earlier states of this split. Whoever has one open keeps it."""
    for entry in os.scandir(cache_dir):
        if entry.name.startswith(f"{stem}-") and entry.name.endswith(".npy") and entry.name != keep:
            os.unlink(entry.path)


def _fill(decoded: Decoded, index: Index, size: int, resize: str) -> None:
    """Digests, base images where they are kept, and what is wrong with which file."""
    prefix = os.path.join(index.root, "")

    def chunk(positions: range) -> int:
        for position in positions:
            path = prefix + index.paths[position]
            try:
                data = read_bytes(path)
                decoded.digests[position] = hashlib.blake2b(data, digest_size=DIGEST // 2).hexdigest()
                image = decode(data, path)
                if decoded.images is not None:
                    decoded.images[position] = base_image(image, size, resize)
            except ImageError as error:
                decoded.digests[position] = decoded.digests[position] or "0" * DIGEST
                decoded.bad[position] = str(error)
        return len(positions)

    are_small = index.sizes.sum() < len(index) * 16_384
    step = 256 if are_small else 8
    chunks = [range(at, min(at + step, len(index))) for at in range(0, len(index), step)]
    show = _progress(len(index), f"reading {index.split}")
    if are_small:  # threads would only wait for each other
        for positions in chunks:
            show(chunk(positions))
    else:
        with ThreadPoolExecutor(min(8, num_cores())) as pool:
            for done in pool.map(chunk, chunks):
                show(done)
    show(0)
    decoded.bad = dict(sorted(decoded.bad.items()))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _progress(total: int, title: str) -> Callable[[int], None]:
    """A bar on a terminal for passes that take a while; nothing elsewhere."""
    if total < 5000 or sys.stderr is None or not sys.stderr.isatty():
        return lambda done: None
    from tqdm import tqdm

    bar = tqdm(total=total, desc=title, unit="image", leave=False)
    return lambda done: bar.update(done) if done else bar.close()
