"""The files of one cache: their names, what makes them a whole, and how they are read and replaced.

Named after the state of the dataset's files: `.npy`, one uint8 memory map (N, S, S, 3); or `.jpegs`, the images as
JPEGs one after the other, and `.offsets`, where each begins; `.digests`, (N, 16), of the image files; `.blocks`,
(M, 32), of the base images; `.ctimes`, (N,) int64, the change times of the image files. The manifest makes them valid:
it is written last and holds the digests of the small files and its own, so at any instant there is a whole cache or
none.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypedDict

import numpy as np

from model.images.index import Index
from utils import UserError, key64, read_json, write_atomic

FORMAT = 4  # changing it makes all caches stale


class NotACache(Exception):
    """What is there cannot be used as the cache; `reason` is for people, "" where nothing has to be said."""

    def __init__(self, reason: str = ""):
        super().__init__(reason)
        self.reason = reason


class Manifest(TypedDict):
    """The JSON file of a cache."""

    format: int
    cache: str  # its stem: dataset, split, size and resize mode
    state: str  # of the dataset's files
    form: str  # "disk", "jpeg" or "off"
    bad: dict[str, str]  # position -> reason
    files: dict[str, str]  # kind -> SHA-256 of that small file
    seal: str  # SHA-256 of all of the above


@dataclass(frozen=True)
class CacheFiles:
    """The file names of one cache, and the state of the dataset's files that it was built from."""

    folder: Path
    stem: str
    state: str

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.stem}.json"

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.stem}.lock"

    @property
    def temporary(self) -> str:
        """Begins the names of folders in which the cache is being built."""
        return f".tmp-{self.stem}-"

    def file(self, kind: str) -> Path:
        return self.folder / f"{self.stem}-{self.state[:12]}{kind}"


def locate(index: Index, size: int, resize: str, form: str, cache_dir: Path) -> CacheFiles:
    root = index.root.resolve()
    kind = f"{resize}-jpeg" if form == "jpeg" else resize
    key = key64(os.fsencode(root).hex(), index.split, size, kind)
    stem = f"{root.name[:60]}-{index.split}-{size}{kind}-{key:016x}"
    return CacheFiles(cache_dir, stem, index.state(FORMAT))


# --- reading ------------------------------------------------------------------------------------------


def read_manifest(files: CacheFiles) -> Manifest:
    """NotACache when there is none, or it is damaged, of another version, or of other files."""
    if not os.path.lexists(files.manifest):
        raise NotACache
    with _open_regular(files.manifest):
        pass
    try:
        manifest = read_json(files.manifest)
        version = manifest.get("format", 3)  # the first that is written in a manifest is 4
        is_sealed = manifest.get("seal") == _seal(manifest)
    except (UserError, AttributeError, TypeError):
        raise NotACache("its manifest is damaged") from None
    if version != FORMAT and (is_sealed or "seal" not in manifest):
        raise NotACache("it was made by another version of the kit")
    if not is_sealed or manifest["cache"] != files.stem:
        raise NotACache("its manifest is damaged")
    if manifest["state"] != files.state:
        raise NotACache
    return manifest


def _seal(manifest: Mapping[str, object]) -> str:
    content = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _open_regular(path: Path) -> BinaryIO:
    """NotACache for what is no regular file (opening a FIFO would block), or may not be read."""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    except OSError as error:  # opening a directory as a file is one, too
        raise NotACache(f"{path.name}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotACache(f"{path.name} is not a regular file")
    return file


def read_array(files: CacheFiles, kind: str, dtype: str, shape: tuple[int, ...], digest: str | None) -> np.ndarray:
    """A small file. NotACache unless it has exactly this size, and this digest where one is given."""
    path = files.file(kind)
    length = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with _open_regular(path) as file:
        data = file.read(length + 1)
    if len(data) != length:
        raise NotACache(f"{path.name} is not {length:,} bytes long")
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise NotACache(f"{path.name} is damaged")
    return np.frombuffer(data, dtype).reshape(shape)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The bytes before the pixels of an uncompressed `.npy` file of uint8."""
    header = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def map_images(files: CacheFiles, shape: tuple[int, ...]) -> np.ndarray:
    """The memory map of `.npy`. NotACache unless its header and its length are exactly those of this shape."""
    header = npy_header(shape)
    path = files.file(".npy")
    with _open_regular(path) as file:
        length = os.fstat(file.fileno()).st_size
        if length != len(header) + int(np.prod(shape)):
            raise NotACache(f"{path.name} is {length:,} bytes long, not {len(header) + int(np.prod(shape)):,}")
        if file.read(len(header)) != header:
            raise NotACache(f"the header of {path.name} is damaged")
        return np.memmap(file, np.uint8, "r", len(header), shape).view(np.ndarray)


def map_bytes(files: CacheFiles, kind: str, length: int) -> np.ndarray:
    """The memory map of a file. NotACache unless it has exactly this length."""
    path = files.file(kind)
    with _open_regular(path) as file:
        if os.fstat(file.fileno()).st_size != length:
            raise NotACache(f"{path.name} is not {length:,} bytes long")
        return np.memmap(file, np.uint8, "r").view(np.ndarray)


# --- writing ------------------------------------------------------------------------------------------


def commit(files: CacheFiles, form: str, bad: dict[int, str], folder: Path) -> None:
    """Make the files in `folder` the cache, and remove those of earlier states; processes that read these can go on."""
    # Write everything, durably, under its own name.
    kinds = sorted(entry.name for entry in folder.iterdir())
    digests = {}
    for kind in kinds:
        with open(folder / kind, "rb") as file:
            os.fsync(file.fileno())
            if kind in (".digests", ".blocks", ".offsets"):
                digests[kind] = hashlib.sha256(file.read()).hexdigest()
        _clear(files.file(kind))
        os.replace(folder / kind, files.file(kind))
    # The manifest commits.
    manifest = Manifest(
        format=FORMAT,
        cache=files.stem,
        state=files.state,
        form=form,
        bad={str(position): reason for position, reason in bad.items()},
        files=digests,
        seal="",
    )
    manifest["seal"] = _seal(manifest)
    _clear(files.manifest)
    write_atomic(files.manifest, json.dumps(manifest))
    # Remove what is stale.
    current = {files.file(kind).name for kind in kinds}
    for entry in os.scandir(files.folder):
        if entry.name.startswith(f"{files.stem}-") and entry.name not in current:
            with contextlib.suppress(OSError):
                _clear(Path(entry.path))
                os.unlink(entry.path)


def _clear(path: Path) -> None:
    """Remove a folder that stands where a file of the cache belongs."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)


def write_ctimes(files: CacheFiles, ctimes: np.ndarray) -> None:
    """Note that the image files were hashed when they had these change times; where that is not possible, do not."""
    with contextlib.suppress(OSError):
        _clear(files.file(".ctimes"))
        write_atomic(files.file(".ctimes"), ctimes.astype("<i8").tobytes())


def discard(files: CacheFiles, seal: str) -> bool:
    """Have the next start build the cache again, unless another process has done so. False when that is forbidden."""
    try:
        if read_manifest(files)["seal"] == seal:
            os.unlink(files.manifest)
    except OSError:
        return False
    except NotACache:
        return True
    return True


def remove_leftovers(files: CacheFiles) -> None:
    """Remove what killed processes left of this cache. Only for the process that has the lock."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(files.folder):
            if entry.name.startswith(files.temporary):
                shutil.rmtree(entry.path, ignore_errors=True)
