"""The cache: decoded base images of a split, so that no file is decoded twice, and the digests of the files.

A cache belongs to a dataset's path, split, size and resize mode, and is stale when any name, size or mtime differs.
Its files are named after that state: `.npy`, one uint8 memory map (N, S, S, 3); or `.jpegs`, the images as JPEGs one
after the other, and `.offsets`, where each begins; `.digests`, (N, 16). The manifest that makes them valid is written
last, so that at any instant there is a whole cache or none.
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
from model.images.reading import DIGEST_SIZE, DecodingPass, keep_in_file, read_all
from utils import UserError, cache_home, key64, read_json, write_atomic

FORMAT = 3  # changing it makes all caches stale
MAX_AUTO_BYTES = 8 << 30
JPEG_QUALITY = 90
PATIENCE = 60  # seconds that another process may make no progress with the same cache


class Jpegs:
    """Base images as JPEGs in one file. Decoded each time."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray, size: int):
        self.data = data  # (number of bytes,) uint8
        self.offsets = offsets  # (N + 1,)
        self.size = size  # S

    def read(self, row: int, out: np.ndarray) -> None:
        """Image `row` into `out` (S, S, 3) uint8."""
        import simplejpeg

        simplejpeg.decode_jpeg(self.data[self.offsets[row] : self.offsets[row + 1]], colorspace="RGB", buffer=out)


@dataclass
class Decoded:
    """The result of a pass over the files, now or earlier."""

    images: np.ndarray | None  # (N, S, S, 3) uint8, zeros where a file is bad; None when they are not kept decoded
    digests: np.ndarray  # (N, 16) uint8; zeros where a file cannot be read
    bad: dict[int, str]  # position -> reason
    form: str  # "disk", "ram", "jpeg" or "off"
    note: str = ""  # why it is not the form that was asked for
    jpegs: Jpegs | None = None  # in form "jpeg", instead of `images`


@dataclass(frozen=True)
class CacheFiles:
    """The file names of one cache, and the state of the dataset's files that it was built from."""

    folder: Path
    stem: str
    state: str

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.stem}.json"

    def file(self, kind: str) -> Path:
        return self.folder / f"{self.stem}-{self.state[:12]}{kind}"


def default_dir(data_dir: Path) -> Path:
    """`.cache` beside the dataset folder, or the user's cache folder when that cannot be written."""
    beside = data_dir.resolve().parent / ".cache"
    if os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return beside
    return cache_home()


def open_decoded(index: Index, size: int, resize: str, form: str, cache_dir: Path) -> Decoded:
    """The decoded images of `index`, from the cache or by reading every file once.

    `form`: auto, disk, ram, jpeg (lossy), off, or device (treated as auto here). "auto" is disk when the images take
    at most 8 GiB and a quarter of the free disk, else off. UserError (exit code 5) when a cache that was asked for
    cannot be written.
    """
    files = _locate(index, size, resize, form, cache_dir)
    if decoded := _open(files, index, size, form):
        return decoded
    chosen, note = _choose(form, len(index) * size * size * 3, cache_dir)
    try:
        decoded = _build(DecodingPass(index, size, resize), chosen, files)
    except OSError as error:
        reason = f"{cache_dir}: {error.strerror}"
        if form not in ("auto", "device"):
            raise UserError(f"cache: {reason}; give another --cache_dir, or set cache to off", EXIT_SYSTEM) from None
        chosen = "ram" if form == "device" else "off"
        note = f"no cache on disk: {reason}"
        decoded = _build(DecodingPass(index, size, resize), chosen, files)
    decoded.note = note
    return decoded


def _locate(index: Index, size: int, resize: str, form: str, cache_dir: Path) -> CacheFiles:
    root = index.root.resolve()
    kind = f"{resize}-jpeg" if form == "jpeg" else resize
    key = key64(os.fsencode(root).hex(), index.split, size, kind)
    stem = f"{root.name[:60]}-{index.split}-{size}{kind}-{key:016x}"
    return CacheFiles(cache_dir, stem, index.state(FORMAT))


def _choose(form: str, num_bytes: int, cache_dir: Path) -> tuple[str, str]:
    """(the form to build, why images are not kept if they are not)."""
    if form not in ("auto", "device"):
        return form, ""
    folder = cache_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    reason = ""
    if num_bytes > MAX_AUTO_BYTES:
        reason = f"{to_gib(num_bytes)} of images, {to_gib(MAX_AUTO_BYTES)} allowed"
    elif num_bytes > free / 4:
        reason = f"{to_gib(num_bytes)} of images, a quarter of the {to_gib(free)} free on disk allowed"
    elif not os.access(folder, os.W_OK):
        reason = f"{folder} cannot be written"
    if not reason:
        return "disk", ""
    return ("ram", "") if form == "device" else ("off", f"not cached: {reason}")


def to_gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"


def _open(files: CacheFiles, index: Index, size: int, form: str) -> Decoded | None:
    """The cache if it is whole, of this state, and has the form that is asked for."""
    try:
        decoded = _read_cache(files, index, size, form)
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or damaged
        return None
    return None if decoded is None or _can_repair(decoded, index) else decoded


def _read_cache(files: CacheFiles, index: Index, size: int, form: str) -> Decoded | None:
    """As `_open`, raising all kinds of errors for a cache that is damaged."""
    manifest = read_json(files.manifest)
    bad = {int(position): reason for position, reason in manifest["bad"].items()}
    kept_form = manifest["form"]
    if manifest["state"] != files.state or (form != "off" and kept_form == "off"):
        return None
    digests = np.fromfile(files.file(".digests"), np.uint8).reshape(len(index), DIGEST_SIZE)
    decoded = Decoded(None, digests, bad, "off")
    if form == "off":
        return decoded
    decoded.form = kept_form
    if form == "jpeg":
        decoded.jpegs = _open_jpegs(files, len(index), size)
        return decoded
    images = _open_images(files)
    if images.shape != (len(index), size, size, 3):
        return None
    decoded.images = images
    if form == "ram":
        decoded.images, decoded.form = np.array(images), "ram"
    return decoded


def _open_images(files: CacheFiles) -> np.ndarray:
    return np.load(files.file(".npy"), mmap_mode="r").view(np.ndarray)


def _open_jpegs(files: CacheFiles, num: int, size: int) -> Jpegs:
    """ValueError: it is not whole."""
    offsets = np.fromfile(files.file(".offsets"), "<i8")
    data = np.memmap(files.file(".jpegs"), np.uint8, mode="r").view(np.ndarray)
    if len(offsets) != num + 1 or offsets[-1] != len(data):
        raise ValueError(files.file(".jpegs"))
    return Jpegs(data, offsets, size)


def _can_repair(decoded: Decoded, index: Index) -> bool:
    """Whether a file that was bad can be used now: sizes and mtimes do not show a change of permissions."""
    for position in decoded.bad:
        with contextlib.suppress(ImageError):
            path = index.root / index.paths[position]
            decode(read_bytes(path), path)
            return True
    return False


# --- building -----------------------------------------------------------------------------------------


def _build(job: DecodingPass, form: str, files: CacheFiles) -> Decoded:
    """One pass over all files, then commit. OSError: disk full, read-only, or another process makes no progress.

    If another process is building the same cache, wait for it and open what it has built.
    """
    is_on_disk = form in ("disk", "jpeg")
    with _locked(files, is_needed=is_on_disk) as job.tick:
        if decoded := _open(files, job.index, job.size, form):
            return decoded
        decoded = Decoded(None, np.empty(0), {}, form)
        if form == "ram":
            decoded.images, job.keep = _in_memory((len(job.index), job.size, job.size, 3))
        if not is_on_disk:
            decoded.digests, decoded.bad = read_all(job)
        # Digests are written in any case; if only they are lost, that is no error.
        with contextlib.nullcontext() if is_on_disk else contextlib.suppress(OSError):
            files.folder.mkdir(parents=True, exist_ok=True)
            prefix = f".tmp-{files.stem}-"
            with tempfile.TemporaryDirectory(prefix=prefix, dir=files.folder, ignore_cleanup_errors=True) as name:
                if is_on_disk:
                    read = _read_jpegs if form == "jpeg" else _read_images
                    decoded.digests, decoded.bad = read(job, Path(name))
                _commit(decoded, files, Path(name))
        if form == "jpeg":
            decoded.jpegs = _open_jpegs(files, len(job.index), job.size)
        elif form == "disk":
            decoded.images = _open_images(files)
        return decoded


def _in_memory(shape: tuple[int, ...]) -> tuple[np.ndarray, Callable[[int, np.ndarray], None]]:
    """(zeros in memory that is shared with forked processes, a `keep` that stores images there)."""
    try:
        memory = mmap.mmap(-1, int(np.prod(shape)))
    except OSError as error:
        raise MemoryError(f"{to_gib(int(np.prod(shape)))} for decoded images") from error
    images = np.frombuffer(memory, np.uint8).reshape(shape)

    def keep(first: int, some: np.ndarray) -> None:
        images[first : first + len(some)] = some

    return images, keep


def _read_images(job: DecodingPass, folder: Path) -> tuple[np.ndarray, dict[int, str]]:
    """The pass, with its base images in `folder`/.npy. Returns digests and bad files."""
    path = folder / ".npy"
    shape = (len(job.index), job.size, job.size, 3)
    start = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).offset
    if hasattr(os, "posix_fallocate"):  # fail on a full disk before the work, not after it
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    job.keep = keep_in_file(path, start)
    return read_all(job)


def _read_jpegs(job: DecodingPass, folder: Path) -> tuple[np.ndarray, dict[int, str]]:
    """The pass, with its base images in `folder`/.jpegs and .offsets. Returns digests and bad files."""
    import simplejpeg

    offsets = [0]
    with open(folder / ".jpegs", "wb") as file:

        def take(encoded: list[bytes]) -> None:
            for data in encoded:
                file.write(data)
                offsets.append(offsets[-1] + len(data))

        job.encode = partial(simplejpeg.encode_jpeg, quality=JPEG_QUALITY, colorsubsampling="420")
        job.take = take
        digests_and_bad = read_all(job)
    (folder / ".offsets").write_bytes(np.array(offsets, "<i8").tobytes())
    return digests_and_bad


def _commit(decoded: Decoded, files: CacheFiles, folder: Path) -> None:
    """Make the files in `folder` the cache, and remove those of earlier states; processes that read these can go on."""
    # Write everything, durably, under its own name.
    (folder / ".digests").write_bytes(decoded.digests.tobytes())
    kinds = sorted(entry.name for entry in folder.iterdir())
    for kind in kinds:
        with open(folder / kind, "rb") as file:
            os.fsync(file.fileno())
        os.replace(folder / kind, files.file(kind))
    # The manifest commits.
    form = "off" if decoded.form == "ram" else decoded.form
    write_atomic(files.manifest, json.dumps({"state": files.state, "form": form, "bad": decoded.bad}))
    # Remove what is stale.
    current = {files.file(kind).name for kind in kinds}
    for entry in os.scandir(files.folder):
        if entry.name.startswith(f"{files.stem}-") and entry.name not in current:
            os.unlink(entry.path)


@contextlib.contextmanager
def _locked(files: CacheFiles, is_needed: bool) -> Iterator[Callable[[], None]]:
    """Keep other processes from building this cache meanwhile; remove what a killed process left of it.

    Yields a function to call now and then: it shows waiting processes that this one makes progress.
    """
    descriptor = None
    try:
        descriptor = _lock(files)
        for entry in os.scandir(files.folder):
            if entry.name.startswith(f".tmp-{files.stem}-"):
                shutil.rmtree(entry.path, ignore_errors=True)
    except OSError:
        if is_needed and not descriptor:
            raise
    try:
        yield partial(os.utime, descriptor) if descriptor else lambda: None
    finally:
        if descriptor:
            os.close(descriptor)


def _lock(files: CacheFiles) -> int | None:
    """The descriptor of a lock that ends with this process; None where files cannot be locked.

    TimeoutError when the process that holds it makes no progress for PATIENCE seconds.
    """
    files.folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(files.folder / f"{files.stem}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    last_progress = None  # the holder touches the file
    since = time.monotonic()
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                progress = os.fstat(descriptor).st_mtime_ns
            if progress != last_progress:
                last_progress, since = progress, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                reason = f"another process builds this cache and has made no progress for {PATIENCE} seconds"
                raise TimeoutError(errno.ETIMEDOUT, reason)
            time.sleep(0.02)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
            return None
        raise
