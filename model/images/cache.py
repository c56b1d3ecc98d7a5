"""Decoded base images of a split, kept so that no file is decoded twice, and the digests of the files.

A cache is found by the dataset's place, split, size and resize mode, and is stale when any name, size or
mtime differs. Its files are named after that state: `.npy`, one uint8 memory map (N, S, S, 3); or `.jpegs`
and `.offsets`, the images as JPEGs behind each other and where each begins; `.digests`, (N, 16). The manifest
that names them is written last, so that at any instant there is a whole cache or none.
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from include import EXIT_SYSTEM
from model.images.decode import ImageError, decode, read_bytes
from model.images.index import Index
from model.images.reading import DIGEST, Job, keep_in_file, read_all
from utils import UserError, cache_home, key64, read_json, write_atomic

FORMAT = 3
MAX_AUTO_BYTES = 8 << 30
JPEG_QUALITY = 90
PATIENCE = 60  # seconds that another process which builds the same cache may stand still


class Jpegs:
    """Base images as JPEGs in one file. Decoded each time."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray, size: int):
        self.data, self.offsets, self.size = data, offsets, size  # (bytes,) uint8, (N + 1,), S

    def read(self, row: int, out: np.ndarray) -> None:
        """Image `row` into `out` (S, S, 3) uint8."""
        import simplejpeg

        simplejpeg.decode_jpeg(self.data[self.offsets[row] : self.offsets[row + 1]], colorspace="RGB", buffer=out)


@dataclass
class Decoded:
    """What a pass over the files gave: base images or None when they are not kept, digests, and bad files."""

    images: np.ndarray | None  # (N, S, S, 3) uint8; zeros where a file is bad
    digests: np.ndarray  # (N, 16) uint8; zeros where a file cannot be read
    bad: dict[int, str]  # position -> reason
    form: str  # "disk", "ram", "jpeg" or "off"
    note: str = ""  # why it is not the form that was wanted
    jpegs: Jpegs | None = None  # in form "jpeg", instead of `images`


@dataclass(frozen=True)
class Place:
    """Where the cache of one split, size, resize mode and kind lies, and which state of the files it is of."""

    folder: Path
    stem: str
    state: str

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.stem}.json"

    def file(self, kind: str) -> Path:
        return self.folder / f"{self.stem}-{self.state[:12]}{kind}"


def default_dir(data_dir: Path) -> Path:
    """`.cache` beside the dataset folder, or the user's cache folder when that place cannot be written."""
    beside = data_dir.resolve().parent / ".cache"
    if os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return beside
    return cache_home()


def open_decoded(index: Index, size: int, resize: str, wanted: str, cache_dir: Path) -> Decoded:
    """The decoded images of `index`, from the cache or by reading every file once.

    `wanted`: auto, disk, ram, jpeg (lossy), off, or device (which begins as auto). "auto" is disk when the images
    fit in 8 GiB and a quarter of the free disk, else off. UserError (exit code 5) when a cache that was asked for
    cannot be written.
    """
    place = _find(index, size, resize, wanted, cache_dir)
    if found := _open(place, index, size, wanted):
        return found
    form, note = _choose(wanted, len(index) * size * size * 3, cache_dir)
    try:
        found = _build(Job(index, size, resize), form, place)
    except OSError as error:
        reason = f"{cache_dir}: {error.strerror}"
        if wanted not in ("auto", "device"):
            raise UserError(f"cache: {reason}; give another --cache_dir, or set cache to off", EXIT_SYSTEM) from None
        form, note = "ram" if wanted == "device" else "off", f"no cache on disk: {reason}"
        found = _build(Job(index, size, resize), form, place)
    found.note = note
    return found


def _find(index: Index, size: int, resize: str, wanted: str, cache_dir: Path) -> Place:
    root = index.root.resolve()
    kind = f"{resize}-jpeg" if wanted == "jpeg" else resize
    key = key64(os.fsencode(root).hex(), index.split, size, kind)
    stem = f"{root.name[:60]}-{index.split}-{size}{kind}-{key:016x}"
    return Place(cache_dir, stem, index.state(FORMAT))


def _choose(wanted: str, num_bytes: int, cache_dir: Path) -> tuple[str, str]:
    """The form to build, and why images are not kept when they are not."""
    if wanted not in ("auto", "device"):
        return wanted, ""
    folder = cache_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    reason, free = "", shutil.disk_usage(folder).free
    if num_bytes > MAX_AUTO_BYTES:
        reason = f"{gib(num_bytes)} of images, {gib(MAX_AUTO_BYTES)} allowed"
    elif num_bytes > free / 4:
        reason = f"{gib(num_bytes)} of images, a quarter of the {gib(free)} free on disk allowed"
    elif not os.access(folder, os.W_OK):
        reason = f"{folder} cannot be written"
    if not reason:
        return "disk", ""
    return ("ram", "") if wanted == "device" else ("off", f"not cached: {reason}")


def gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"


def _open(place: Place, index: Index, size: int, wanted: str) -> Decoded | None:
    """The cache when it is whole, of this state, and has what is wanted."""
    try:
        manifest = read_json(place.manifest)
        form, bad = manifest["form"], {int(position): reason for position, reason in manifest["bad"].items()}
        if manifest["state"] != place.state or (wanted != "off" and form == "off"):
            return None
        digests = np.fromfile(place.file(".digests"), np.uint8).reshape(len(index), DIGEST)
        found = Decoded(None, digests, bad, "off")
        if wanted == "jpeg":
            found.jpegs, found.form = _open_jpegs(place, len(index), size), form
        elif wanted != "off":
            images = _open_images(place)
            if images.shape != (len(index), size, size, 3):
                return None
            found.images, found.form = (np.array(images), "ram") if wanted == "ram" else (images, form)
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return None if _can_repair(found, index) else found


def _open_images(place: Place) -> np.ndarray:
    return np.load(place.file(".npy"), mmap_mode="r").view(np.ndarray)


def _open_jpegs(place: Place, num: int, size: int) -> Jpegs:
    """ValueError: it is not whole."""
    offsets = np.fromfile(place.file(".offsets"), "<i8")
    data = np.memmap(place.file(".jpegs"), np.uint8, mode="r").view(np.ndarray)
    if len(offsets) != num + 1 or offsets[-1] != len(data):
        raise ValueError(place.file(".jpegs"))
    return Jpegs(data, offsets, size)


def _can_repair(found: Decoded, index: Index) -> bool:
    """Whether a file that was bad can be used now: permissions leave no trace in sizes and mtimes."""
    for position in found.bad:
        with contextlib.suppress(ImageError):
            path = index.root / index.paths[position]
            decode(read_bytes(path), path)
            return True
    return False


# --- building -----------------------------------------------------------------------------------------


def _build(job: Job, form: str, place: Place) -> Decoded:
    """One pass over all files; then commit. OSError: disk full, read-only, or another process hangs at it.

    A process that finds another at it waits, and opens what that has built.
    """
    is_kept = form in ("disk", "jpeg")
    with _locked(place, is_needed=is_kept) as job.tick:
        if found := _open(place, job.index, job.size, form):
            return found
        found = Decoded(None, np.empty(0), {}, form)
        if form == "ram":
            found.images, job.keep = _in_memory((len(job.index), job.size, job.size, 3))
        if not is_kept:
            found.digests, found.bad = read_all(job)
        with contextlib.nullcontext() if is_kept else contextlib.suppress(OSError):
            place.folder.mkdir(parents=True, exist_ok=True)
            prefix = f".tmp-{place.stem}-"
            with tempfile.TemporaryDirectory(prefix=prefix, dir=place.folder, ignore_cleanup_errors=True) as name:
                if is_kept:
                    read = _read_jpegs if form == "jpeg" else _read_images
                    found.digests, found.bad = read(job, Path(name))
                _commit(found, place, Path(name))
        if form == "jpeg":
            found.jpegs = _open_jpegs(place, len(job.index), job.size)
        elif form == "disk":
            found.images = _open_images(place)
        return found


def _in_memory(shape: tuple[int, ...]) -> tuple[np.ndarray, Callable[[int, np.ndarray], None]]:
    """Zeros in memory that is shared with forked processes, and what stores images in it."""
    try:
        memory = mmap.mmap(-1, int(np.prod(shape)))
    except OSError as error:
        raise MemoryError(f"{gib(int(np.prod(shape)))} for decoded images") from error
    images = np.frombuffer(memory, np.uint8).reshape(shape)

    def keep(first: int, some: np.ndarray) -> None:
        images[first : first + len(some)] = some

    return images, keep


def _read_images(job: Job, folder: Path) -> tuple[np.ndarray, dict[int, str]]:
    path, shape = folder / ".npy", (len(job.index), job.size, job.size, 3)
    start = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).offset
    if hasattr(os, "posix_fallocate"):  # a full disk is found before the work, not after it
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    job.keep = keep_in_file(path, start)
    return read_all(job)


def _read_jpegs(job: Job, folder: Path) -> tuple[np.ndarray, dict[int, str]]:
    import simplejpeg

    offsets = [0]
    with open(folder / ".jpegs", "wb") as file:

        def take(encoded: list[bytes]) -> None:
            for data in encoded:
                file.write(data)
                offsets.append(offsets[-1] + len(data))

        job.encode = partial(simplejpeg.encode_jpeg, quality=JPEG_QUALITY, colorsubsampling="420")
        job.take = take
        found = read_all(job)
    (folder / ".offsets").write_bytes(np.array(offsets, "<i8").tobytes())
    return found


def _commit(found: Decoded, place: Place, folder: Path) -> None:
    """The files in `folder` take their names; the manifest makes them the cache; those of earlier states go.

    Whoever has one of these open keeps it.
    """
    (folder / ".digests").write_bytes(found.digests.tobytes())
    kinds = sorted(entry.name for entry in folder.iterdir())
    for kind in kinds:
        with open(folder / kind, "rb") as file:
            os.fsync(file.fileno())
        os.replace(folder / kind, place.file(kind))
    form = "off" if found.form == "ram" else found.form
    write_atomic(place.manifest, json.dumps({"state": place.state, "form": form, "bad": found.bad}))
    kept = {place.file(kind).name for kind in kinds}
    for entry in os.scandir(place.folder):
        if entry.name.startswith(f"{place.stem}-") and entry.name not in kept:
            os.unlink(entry.path)


@contextlib.contextmanager
def _locked(place: Place, is_needed: bool) -> Iterator[Callable[[], None]]:
    """Nobody else builds this cache meanwhile; what a killed process left of it is removed.

    Gives what to call now and then, so that those who wait see that it goes on.
    """
    descriptor = None
    try:
        descriptor = _lock(place)
        for entry in os.scandir(place.folder):
            if entry.name.startswith(f".tmp-{place.stem}-"):
                shutil.rmtree(entry.path, ignore_errors=True)
    except OSError:
        if is_needed and not descriptor:
            raise
    try:
        yield partial(os.utime, descriptor) if descriptor else lambda: None
    finally:
        if descriptor:
            os.close(descriptor)


def _lock(place: Place) -> int | None:
    """The descriptor of a lock that ends with this process; None where files cannot be locked."""
    place.folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place.folder / f"{place.stem}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    seen, since = None, time.monotonic()
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                last = os.fstat(descriptor).st_mtime_ns
            if last != seen:
                seen, since = last, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                reason = f"another process builds this cache, and has stood still for {PATIENCE} seconds"
                raise TimeoutError(errno.ETIMEDOUT, reason)
            time.sleep(0.02)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
            return None
        raise
