"""The cache: decoded base images of a split, so that no file is decoded twice, and the digests of the files.

A cache belongs to a dataset's path, split, size and resize mode, and is stale when any name, size or mtime differs.
Where a change time differs, that file is hashed again; only another content makes the cache stale. Nothing in it is
believed without its digest: small files are compared when the cache is opened, images before they are used.
"""

import contextlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from include import EXIT_SYSTEM
from model.images.cached import files as cache_files
from model.images.cached import lock as cache_lock
from model.images.cached.files import CacheFiles, Manifest, NotACache
from model.images.cached.intact import DIGEST_BYTES, CheckedImages, CheckedJpegs, rows_per_block
from model.images.cached.lock import lock_file
from model.images.decode import ImageError, base_image, decode, read_bytes
from model.images.index import Index
from model.images.reading import DIGEST_SIZE, DecodingPass, Reading, digest_of, keep_in_file, read_all
from utils import UserError, cache_home, say

MAX_AUTO_BYTES = 8 << 30
JPEG_QUALITY = 90


@dataclass
class Decoded:
    """The result of a pass over the files, now or earlier."""

    images: np.ndarray | CheckedImages | None  # (N, S, S, 3) uint8, zeros where a file is bad; None: not kept decoded
    digests: np.ndarray  # (N, 16) uint8; zeros where a file cannot be read
    bad: dict[int, str]  # position -> reason
    form: str  # "disk", "ram", "jpeg" or "off"
    note: str = ""  # why it is not the form that was asked for
    jpegs: CheckedJpegs | None = None  # in form "jpeg", instead of `images`


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
    files = cache_files.locate(index, size, resize, form, cache_dir)
    with contextlib.suppress(NotACache):
        return _open(files, DecodingPass(index, size, resize), form, hashes=False)
    chosen, note = _choose(form, len(index) * size * size * 3, cache_dir)
    try:
        decoded = _build(DecodingPass(index, size, resize), chosen, files, cache_lock.PATIENCE)
    except OSError as error:
        reason = f"{cache_dir}: {error.strerror}"
        if form not in ("auto", "device"):
            raise UserError(f"cache: {reason}; give another --cache_dir, or set cache to off", EXIT_SYSTEM) from None
        chosen = "ram" if form == "device" else "off"
        note = f"no cache on disk: {reason}"
        decoded = _build(DecodingPass(index, size, resize), chosen, files, patience=0)
    decoded.note = note
    return decoded


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


# --- opening ------------------------------------------------------------------------------------------


def _open(files: CacheFiles, job: DecodingPass, form: str, hashes: bool) -> Decoded:
    """NotACache unless it is whole, of these files, and has the form that is asked for.

    `hashes`: files whose change time differs are hashed again. Otherwise they make it a NotACache.
    """
    index = job.index
    manifest = cache_files.read_manifest(files)
    if form != "off" and manifest["form"] == "off":
        raise NotACache
    digests = cache_files.read_array(
        files, ".digests", "u1", (len(index), DIGEST_SIZE), manifest["files"].get(".digests", "")
    )
    bad = {int(position): reason for position, reason in manifest["bad"].items()}
    decoded = Decoded(None, digests, bad, "off")
    _check_contents(files, job, digests, hashes)
    if form == "jpeg":
        decoded.jpegs = _open_jpegs(files, job, manifest, digests)
        decoded.form = "jpeg"
    elif form != "off":
        images = _open_images(files, job, manifest, digests)
        decoded.images = _load(images) if form == "ram" else images
        decoded.form = "ram" if form == "ram" else "disk"
    if _can_repair(decoded, index):
        raise NotACache
    return decoded


def _check_contents(files: CacheFiles, job: DecodingPass, digests: np.ndarray, hashes: bool) -> None:
    """NotACache when a file whose change time differs has another content."""
    index = job.index
    try:
        is_changed = cache_files.read_array(files, ".ctimes", "<i8", (len(index),), None) != index.ctimes
    except NotACache:
        is_changed = np.ones(len(index), bool)
    if not is_changed.any():
        return
    if not hashes:
        raise NotACache
    part = DecodingPass(index.select(is_changed, index.split), job.size, job.resize, decodes=False, tick=job.tick)
    num_other = int((read_all(part).digests != digests[is_changed]).any(axis=1).sum())
    if num_other:
        raise NotACache(f"{num_other} image files have other contents, though their sizes and mtimes are the same")
    cache_files.write_ctimes(files, index.ctimes)


def _open_images(files: CacheFiles, job: DecodingPass, manifest: Manifest, digests: np.ndarray) -> CheckedImages:
    """NotACache: it is not whole."""
    shape = (len(job.index), job.size, job.size, 3)
    num_blocks = -(-shape[0] // rows_per_block(int(np.prod(shape[1:]))))
    blocks = cache_files.read_array(
        files, ".blocks", "u1", (num_blocks, DIGEST_BYTES), manifest["files"].get(".blocks", "")
    )
    images = cache_files.map_images(files, shape)
    again = partial(decode_again, job.index, job.size, job.resize, digests)
    return CheckedImages(images, blocks, again, partial(_report_damage, files, manifest["seal"]))


def _open_jpegs(files: CacheFiles, job: DecodingPass, manifest: Manifest, digests: np.ndarray) -> CheckedJpegs:
    """NotACache: it is not whole."""
    num, recorded = len(job.index), manifest["files"]
    offsets = cache_files.read_array(files, ".offsets", "<i8", (num + 1,), recorded.get(".offsets", ""))
    blocks = cache_files.read_array(files, ".blocks", "u1", (num, DIGEST_BYTES), recorded.get(".blocks", ""))
    data = cache_files.map_bytes(files, ".jpegs", int(offsets[-1]))
    again = partial(encode_again, job.index, job.size, job.resize, digests)
    return CheckedJpegs(data, offsets, job.size, blocks, again, partial(_report_damage, files, manifest["seal"]))


def _load(images: CheckedImages) -> np.ndarray:
    """A copy in memory. NotACache when a block is damaged."""
    copy, keep = _in_memory(images.array.shape)
    keep(0, images.array)
    loaded = CheckedImages(copy, images.check.expected, images.decode_again, lambda: None)
    if not loaded.are_intact(np.arange(len(copy))):
        raise NotACache("its images are damaged")
    return copy


def decode_again(index: Index, size: int, resize: str, digests: np.ndarray, row: int) -> np.ndarray:
    """The base image of a file, which must have the content that it had when the cache was built. (S, S, 3) uint8."""
    path = index.root / index.paths[row]
    data = read_bytes(path)
    if digest_of(data) != digests[row].tobytes():
        raise ImageError(f"{path}: the file has changed since its dataset was opened")
    return base_image(decode(data, path), size, resize)


def encode_again(index: Index, size: int, resize: str, digests: np.ndarray, row: int) -> bytes:
    """The same as the jpeg cache keeps it."""
    return encode_jpeg(decode_again(index, size, resize, digests, row))


def encode_jpeg(image: np.ndarray) -> bytes:
    """A base image as the jpeg cache keeps it."""
    import simplejpeg

    return simplejpeg.encode_jpeg(image, quality=JPEG_QUALITY, colorsubsampling="420")


def _report_damage(files: CacheFiles, seal: str) -> None:
    """Say that images in the cache are damaged, and have the next start build it again."""
    then = "the next start builds the cache again" if cache_files.discard(files, seal) else "remove the cache"
    say(
        f"cache {files.folder / files.stem}: images in it are damaged; "
        f"they are decoded from their own files again, which is slower and gives the same results; {then}"
    )


def _can_repair(decoded: Decoded, index: Index) -> bool:
    """Whether a file that was bad can be used now: sizes and mtimes do not show a change of permissions."""
    for position in decoded.bad:
        with contextlib.suppress(ImageError):
            path = index.root / index.paths[position]
            decode(read_bytes(path), path)
            return True
    return False


# --- building -----------------------------------------------------------------------------------------


def _build(job: DecodingPass, form: str, files: CacheFiles, patience: float) -> Decoded:
    """One pass over all files, then commit. OSError: disk full, read-only, or another process makes no progress.

    If another process is building the same cache, wait for it and open what it has built.
    """
    is_on_disk = form in ("disk", "jpeg")
    with lock_file(files.lock, patience) as lock:
        if not lock.is_busy:
            cache_files.remove_leftovers(files)
        job.tick = lock.tick
        try:
            return _open(files, job, form, hashes=True)
        except NotACache as error:
            if error.reason:
                say(f"cache {files.folder / files.stem}: {error.reason}; it is built again")
        if form == "ram":
            images, job.keep = _in_memory((len(job.index), job.size, job.size, 3))
            reading = read_all(job)
            _store_digests(files, job, reading, lock.is_busy)
            return Decoded(images, reading.digests, reading.bad, form)
        if not is_on_disk:
            reading = read_all(job)
            _store_digests(files, job, reading, lock.is_busy)
            return Decoded(None, reading.digests, reading.bad, form)
        with _build_folder(files) as folder:
            reading = (_read_jpegs if form == "jpeg" else _read_images)(job, folder)
            (folder / ".blocks").write_bytes(b"".join(reading.blocks))
            _commit(files, job, form, reading, folder)
        manifest = cache_files.read_manifest(files)
        decoded = Decoded(None, reading.digests, reading.bad, form)
        if form == "jpeg":
            decoded.jpegs = _open_jpegs(files, job, manifest, reading.digests)
        else:
            decoded.images = _open_images(files, job, manifest, reading.digests)
        return decoded


@contextlib.contextmanager
def _build_folder(files: CacheFiles) -> Iterator[Path]:
    """A folder beside the cache, which disappears at the end."""
    files.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=files.temporary, dir=files.folder, ignore_cleanup_errors=True) as name:
        yield Path(name)


def _store_digests(files: CacheFiles, job: DecodingPass, reading: Reading, is_busy: bool) -> None:
    """Commit the digests alone, unless another process is building. If they are lost, that is no error."""
    if not is_busy:
        with contextlib.suppress(OSError), _build_folder(files) as folder:
            _commit(files, job, "off", reading, folder)


def _commit(files: CacheFiles, job: DecodingPass, form: str, reading: Reading, folder: Path) -> None:
    (folder / ".digests").write_bytes(reading.digests.tobytes())
    (folder / ".ctimes").write_bytes(job.index.ctimes.astype("<i8").tobytes())
    cache_files.commit(files, form, reading.bad, folder)


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


def _read_images(job: DecodingPass, folder: Path) -> Reading:
    """The pass, with its base images in `folder`/.npy."""
    path = folder / ".npy"
    shape = (len(job.index), job.size, job.size, 3)
    header = cache_files.npy_header(shape)
    length = len(header) + int(np.prod(shape))
    with open(path, "wb") as file:
        file.write(header)
        if hasattr(os, "posix_fallocate"):  # fail on a full disk before the work, not after it
            os.posix_fallocate(file.fileno(), 0, length)
        else:
            file.truncate(length)
    job.keep = keep_in_file(path, len(header))
    return read_all(job)


def _read_jpegs(job: DecodingPass, folder: Path) -> Reading:
    """The pass, with its base images in `folder`/.jpegs and .offsets."""
    offsets = [0]
    with open(folder / ".jpegs", "wb") as file:

        def take(encoded: list[bytes]) -> None:
            for data in encoded:
                file.write(data)
                offsets.append(offsets[-1] + len(data))

        job.encode = encode_jpeg
        job.take = take
        reading = read_all(job)
    (folder / ".offsets").write_bytes(np.array(offsets, "<i8").tobytes())
    return reading
