"""The cache of decoded images: never stale, never half, shared by processes; lossy only where that was asked for."""

import contextlib
import copy
import fcntl
import hashlib
import json
import os
import pty
import re
import resource
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import ROOT, SHARED, make_dataset
from loaders import are_equal, batches, loader, loaders, make_params, noise
from PIL import Image

from model.images import cache, reading
from model.images.cache import open_decoded
from model.images.cached import files as cache_files
from model.images.cached import intact
from model.images.cached import lock as cache_lock
from model.images.decode import ImageError, base_image, decode
from model.images.index import index_split
from utils import UserError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """train and valid; 3 classes of 12 images of 16 px in each."""
    return make_dataset(tmp_path / "data", ("train", "valid"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """train and valid; 2 classes of 10 JPEGs of 120 x 90 px in each."""
    for split in ("train", "valid"):
        for label in "ab":
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(10):
                seed = number + 10 * (label == "b") + 20 * (split == "valid")
                Image.fromarray(noise(90, 120, seed)).save(folder / f"{number}.jpg", quality=92)
    return tmp_path / "photos"


@pytest.fixture
def always_fork(monkeypatch):
    monkeypatch.setattr(reading, "FORK_SECONDS", 0)
    monkeypatch.setattr(reading, "num_cores", lambda: 3)


def decoded(data: Path, wanted: str = "auto", size: int = 16, folder: Path | None = None) -> cache.Decoded:
    return open_decoded(index_split(data / "train", "train", data), size, "crop", wanted, folder or data / ".cache")


def pixels(found: cache.Decoded) -> np.ndarray:
    if not found.jpegs:
        assert found.images is not None
        return found.images[np.arange(len(found.digests))]
    images = np.zeros((len(found.digests), found.jpegs.size, found.jpegs.size, 3), np.uint8)
    for row, image in enumerate(images):
        found.jpegs.read(row, image)
    return images


def names(folder: Path) -> set[str]:
    return {path.suffix for path in folder.iterdir()}


# --- staleness ------------------------------------------------------------------------------------------------


def touch(folder: Path) -> None:
    os.utime(folder / "000.png", ns=(1, (folder / "000.png").stat().st_mtime_ns + 1))


def replace(folder: Path) -> None:
    """By other pixels of the same size in bytes, as far as the directory shows."""
    path, other = folder / "000.png", folder / "001.png"
    shutil.copy(other, path.with_suffix(".tmp")), os.replace(path.with_suffix(".tmp"), path)


def swap(folder: Path) -> None:
    """Two names change places; sizes and mtimes go with them."""
    first, second, third = folder / "000.png", folder / "001.png", folder / "x.png"
    os.rename(first, third), os.rename(second, first), os.rename(third, second)


def stand_in(folder: Path) -> None:
    """Another file takes one's place in the order, with its size and its mtime."""
    path, other = folder / "005.png", folder / "005x.png"
    status = path.stat()
    Image.new("RGB", (16, 16)).save(other)
    os.truncate(other, status.st_size)  # zeros behind the end of a PNG are nothing
    path.unlink(), os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
    "stood in for": stand_in,
    "touched": touch,
    "replaced": replace,
    "added": lambda folder: shutil.copy2(folder / "003.png", folder / "zzz.png"),
    "removed": lambda folder: (folder / "005.png").unlink(),
    "renamed": lambda folder: os.rename(folder / "005.png", folder / "zzz.png"),
    "swapped": swap,
}


@pytest.mark.parametrize("wanted", ["disk", "jpeg", "off"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_file_means_a_new_cache(data, tmp_path, change, wanted, monkeypatch):
    decoded(data, wanted)
    change(data / "train" / "class_0")
    seen, decode = [], reading.decode
    monkeypatch.setattr(reading, "decode", lambda content, path: seen.append(path) or decode(content, path))
    again = decoded(data, wanted)
    assert len(seen) == len(again.digests) == len(index_split(data / "train", "train", data))
    fresh = decoded(data, wanted, folder=tmp_path / "fresh")
    assert np.array_equal(again.digests, fresh.digests)
    assert wanted == "off" or np.array_equal(pixels(again), pixels(fresh))
    del seen[:]
    assert np.array_equal(decoded(data, wanted).digests, fresh.digests)
    assert not seen
    assert len(list((data / ".cache").glob("*.digests"))) == 1  # those of the earlier state went


@pytest.mark.parametrize(
    "damage", [lambda p: p.write_bytes(p.read_bytes()[:-8]), lambda p: p.unlink(), lambda p: p.write_bytes(b"{")]
)
@pytest.mark.parametrize("kind", [".json", ".jpegs", ".offsets", ".digests"])
def test_a_damaged_cache_is_built_again(data, damage, kind):
    first = decoded(data, "jpeg")
    before = pixels(first)
    (path,) = (data / ".cache").glob(f"*{kind}")
    damage(path)
    again = decoded(data, "jpeg")
    assert np.array_equal(pixels(again), before)
    assert np.array_equal(again.digests, first.digests)


def test_images_of_another_shape_are_not_used(data):
    before = pixels(decoded(data, "disk"))
    (path,) = (data / ".cache").glob("*.npy")
    np.save(path, before[:-1])
    assert np.array_equal(pixels(decoded(data, "disk")), before)


def test_images_that_are_read_stay_when_the_cache_is_renewed(data):
    first = decoded(data, "disk")
    before = pixels(decoded(data, "disk"))
    touch(data / "train" / "class_0")
    decoded(data, "disk")
    assert np.array_equal(pixels(first), before)


# --- nothing is believed --------------------------------------------------------------------------------------


def cache_file(data: Path, kind: str) -> Path:
    (path,) = (data / ".cache").glob(f"*{kind}")
    return path


def overwrite(path: Path, at: int, content: bytes) -> None:
    """Bytes in the middle of a file; its size and its times stay."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip(path: Path, at: int) -> None:
    byte = path.read_bytes()[at]
    overwrite(path, at if at >= 0 else path.stat().st_size + at, bytes([byte ^ 1]))


@pytest.mark.parametrize("at", [128, 5000, -1])
def test_a_flipped_pixel_is_never_used(data, at, capfd):
    """128: the first byte after the header."""
    before = pixels(decoded(data, "disk"))
    flip(cache_file(data, ".npy"), at)
    again = decoded(data, "disk")
    assert again.form == "disk"
    assert np.array_equal(pixels(again), before)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert "images in it are damaged" in lines[0]
    assert "the next start builds the cache again" in lines[0]
    assert np.array_equal(pixels(again), before)
    assert not capfd.readouterr().err  # once is enough
    renewed = decoded(data, "disk")
    assert isinstance(renewed.images, intact.CheckedImages)
    assert renewed.images.are_intact(np.arange(36))
    assert np.array_equal(renewed.images.array, before)


def test_a_flipped_pixel_in_a_jpeg_cache_is_never_used(data, capfd):
    before = pixels(decoded(data, "jpeg"))
    for at in (700, -20):
        flip(cache_file(data, ".jpegs"), at)
        assert np.array_equal(pixels(decoded(data, "jpeg")), before)
        assert "the next start builds the cache again" in capfd.readouterr().err
        assert np.array_equal(pixels(decoded(data, "jpeg")), before)
        assert not capfd.readouterr().err


def test_a_flipped_pixel_means_a_new_cache_in_memory(data, capfd):
    before = pixels(decoded(data, "disk"))
    flip(cache_file(data, ".npy"), 3000)
    assert np.array_equal(pixels(decoded(data, "ram")), before)
    assert "its images are damaged; it is built again" in capfd.readouterr().err


def test_a_cache_folder_is_made_with_its_parents_and_locked(data):
    folder = data / "not" / "yet" / "there"
    assert decoded(data, "disk", folder=folder).form == "disk"
    assert {path.suffix for path in folder.iterdir()} >= {".json", ".npy", ".lock"}
    assert decoded(data, "off", folder=data / "nor" / "this").form == "off"
    assert {path.suffix for path in (data / "nor" / "this").iterdir()} >= {".json", ".lock"}


@pytest.mark.parametrize(("form", "workers"), [("disk", 0), ("disk", 2), ("jpeg", 0), ("jpeg", 2)])
def test_batches_are_the_same_whatever_happens_to_the_cache(data, form, workers, capfd):
    values = {"cache": form, "num_workers": workers, "im_sz": 16, "batch_size": 6, "cache_dir": data / ".cache"}
    exact = batches(loader(data, **values), 2)
    mean = loader(data, **values).pinned["mean"]
    (path,) = (data / ".cache").glob("data-train*.npy" if form == "disk" else "data-train*.jpegs")
    overwrite(path, 600, b"\xff" * 6000)
    damaged = loader(data, **values)
    assert are_equal(batches(damaged, 2), exact)
    assert damaged.pinned["mean"] == mean
    assert capfd.readouterr().err.count("images in it are damaged") == 1
    assert are_equal(batches(loader(data, **values), 2), exact)


def test_a_damaged_image_whose_file_has_changed_is_an_error(data):
    decoded(data, "disk")
    flip(cache_file(data, ".npy"), 128)
    again = decoded(data, "disk")
    shutil.copy(data / "train" / "class_0" / "001.png", data / "train" / "class_0" / "000.png")
    with pytest.raises(ImageError, match=r"class_0/000\.png: the file has changed since its dataset was opened"):
        pixels(again)


SMALL_FILES = [".digests", ".blocks", ".offsets", ".json", ".ctimes"]


@pytest.mark.parametrize("kind", SMALL_FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 1.0])
def test_a_flipped_bit_in_a_small_file_is_found(data, kind, place, capfd):
    form = "jpeg" if kind == ".offsets" else "disk"
    first = decoded(data, form)
    before = pixels(first)
    path = cache_file(data, kind)
    flip(path, round(place * (path.stat().st_size - 1)))
    again = decoded(data, form)
    assert np.array_equal(again.digests, first.digests)
    assert np.array_equal(pixels(again), before)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == (kind != ".ctimes"), lines  # files are hashed again, and are the same
    decoded(data, form)
    assert not capfd.readouterr().err


def odd_header(path: Path) -> None:
    overwrite(path, 0, b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': (((((")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


ODD = {
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "long": lambda path: os.truncate(path, path.stat().st_size + 1),
    "odd header": odd_header,
    "fifo": fifo,
    "folder": folder,
    "loop": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "device": lambda path: (path.unlink(), path.symlink_to("/dev/null")),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", ODD.values(), ids=ODD)
@pytest.mark.parametrize("kind", [".npy", *SMALL_FILES])
def test_what_is_not_exactly_a_cache_is_built_again(data, kind, damage, capfd):
    form = "jpeg" if kind == ".offsets" else "disk"
    before = pixels(decoded(data, form))
    damage(cache_file(data, kind))
    again = decoded(data, form)
    assert again.form == form
    assert np.array_equal(pixels(again), before)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == (kind != ".ctimes"), lines
    assert kind == ".ctimes" or lines[0].endswith("; it is built again")
    again = decoded(data, form)
    assert np.array_equal(pixels(again), before)
    assert not capfd.readouterr().err


def test_a_file_that_may_not_be_read_is_replaced(data, monkeypatch, capfd):
    """Root may read anything: the error is simulated."""
    before = pixels(decoded(data, "disk"))
    path, real = cache_file(data, ".npy"), os.open
    inode = path.stat().st_ino

    def refuse(name, *args, **kwargs):
        if Path(name) == path and path.stat().st_ino == inode:
            raise PermissionError(13, "Permission denied", str(name))
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    assert np.array_equal(pixels(decoded(data, "disk")), before)
    assert "Permission denied; it is built again" in capfd.readouterr().err


def test_a_manifest_of_another_cache_is_refused(data, capfd):
    """Sealed, and of the same names, sizes and mtimes: of another size in pixels."""
    decoded(data, "disk", 8)
    other = {path.suffix: path for path in (data / ".cache").iterdir()}
    before = pixels(decoded(data, "disk", 16))
    mine = {path.suffix: path for path in (data / ".cache").iterdir() if path not in other.values()}
    shutil.copy(other[".json"], mine[".json"])
    assert np.array_equal(pixels(decoded(data, "disk", 16)), before)
    assert "its manifest is damaged; it is built again" in capfd.readouterr().err


def test_a_cache_of_an_older_version_is_built_again(data, capfd):
    before = pixels(decoded(data, "disk"))
    path = cache_file(data, ".json")
    path.write_text(json.dumps({"state": "0" * 64, "form": "disk", "bad": {}}))  # what version 0.1.0 wrote
    assert np.array_equal(pixels(decoded(data, "disk")), before)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "it was made by another version of the kit; it is built again" in lines[0]


# --- change times ---------------------------------------------------------------------------------------------

HARMLESS = {
    "chmod": lambda path: path.chmod(0o600),
    "hard link": lambda path: os.link(path, path.parent.parent.parent / "link.png"),
    "copied back": lambda path: (shutil.copy2(path, path.with_suffix(".x")), os.replace(path.with_suffix(".x"), path)),
    "renamed twice": lambda path: (path.rename(path.with_suffix(".x")), path.with_suffix(".x").rename(path)),
}


@pytest.mark.parametrize("form", ["disk", "jpeg", "off"])
@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_a_change_time_alone_leads_to_hashing_of_that_file(data, change, form, monkeypatch, capfd):
    before = decoded(data, form)
    change(data / "train" / "class_1" / "004.png")
    read, real = [], reading.read_bytes
    monkeypatch.setattr(reading, "read_bytes", lambda path: read.append(path) or real(path))
    monkeypatch.setattr(reading, "decode", lambda *_: pytest.fail("decoded again"))
    again = decoded(data, form)
    assert [Path(path).name for path in read] == ["004.png"]
    assert again.form == before.form
    assert np.array_equal(again.digests, before.digests)
    decoded(data, form)
    assert len(read) == 1, "once is enough"
    assert not capfd.readouterr().err


@pytest.mark.parametrize("form", ["disk", "jpeg", "off"])
def test_contents_that_change_places_with_sizes_and_times_restored(data, form, tmp_path, capfd):
    first, second = (data / "train" / label / "000.png" for label in ("class_0", "class_1"))
    padded = [path.read_bytes().ljust(1000, b"\0") for path in (first, second)]
    for path, content in zip((first, second), padded, strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(1, 10**18))
    old = decoded(data, form)
    for path, content in zip((second, first), padded, strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(1, 10**18))
    again = decoded(data, form)
    fresh = decoded(data, form, folder=tmp_path / "fresh")
    assert np.array_equal(again.digests, fresh.digests)
    assert not np.array_equal(again.digests, old.digests)
    assert form == "off" or np.array_equal(pixels(again), pixels(fresh))
    assert "2 image files have other contents, though their sizes and mtimes are the same" in capfd.readouterr().err


def test_without_a_cache_a_file_that_changes_during_a_run_is_an_error(data):
    train = loader(data, cache="off", num_workers=0)
    first, second = (data / train.paths[position] for position in (3, 20))
    exact = train.source.read(np.arange(36))
    status = first.stat()
    os.chmod(first, 0o600)  # another change time
    assert np.array_equal(train.source.read(np.arange(36)), exact)
    content = second.read_bytes()
    first.write_bytes(content.ljust(status.st_size, b"\0"))
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ImageError, match=f"{first.name}: the file has changed since its dataset was opened"):
        train.source.read(np.arange(36))


def test_a_cache_that_may_not_be_written_is_used_all_the_same(data, monkeypatch, capfd):
    """Root may write anything: the errors are simulated."""
    before = pixels(decoded(data, "disk"))
    (data / "train" / "class_1" / "004.png").chmod(0o600)

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache_files, "write_atomic", refuse)
    monkeypatch.setattr(reading, "decode", lambda *_: pytest.fail("decoded again"))
    again = decoded(data, "disk")
    assert again.form == "disk"
    assert np.array_equal(pixels(again), before)


@pytest.mark.parametrize("form", ["disk", "jpeg"])
def test_a_cache_travels_to_workers_that_are_not_forked(data, form):
    """macOS: what a worker needs is pickled; a deep copy goes the same way."""
    before = pixels(decoded(data, form))
    flip(cache_file(data, ".npy" if form == "disk" else ".jpegs"), 700)
    found = decoded(data, form)
    received = copy.deepcopy(found)
    assert np.array_equal(pixels(received), before)


# --- blocks ---------------------------------------------------------------------------------------------------


def test_blocks_by_hand(data):
    decoded(data, "disk")
    images = np.load(cache_file(data, ".npy"))
    assert images.shape == (36, 16, 16, 3)
    expected = [hashlib.sha256(images[at : at + 16].tobytes()).digest() for at in (0, 16, 32)]
    assert cache_file(data, ".blocks").read_bytes() == b"".join(expected)
    sizes = {side: intact.rows_per_block(side * side * 3) for side in (8, 32, 36, 37, 64, 74, 128, 256, 512)}
    assert sizes == {8: 16, 32: 16, 36: 16, 37: 8, 64: 4, 74: 2, 128: 1, 256: 1, 512: 1}


def test_each_block_is_compared_once_and_by_threads_where_there_are_many(data, monkeypatch):
    compared = []
    monkeypatch.setattr(intact, "block_digest", lambda block: compared.append(1) or hashlib.sha256(block).digest())
    images = decoded(data, "disk").images
    assert isinstance(images, intact.CheckedImages)
    del compared[:]  # those of the pass
    assert images.are_intact(np.array([0, 3]))
    assert len(compared) == 1
    monkeypatch.setattr(intact, "MIN_FOR_THREADS", 1)
    monkeypatch.setattr(intact, "num_cores", lambda: 2)
    assert images.are_intact(np.arange(36))
    assert images.are_intact(np.arange(36))
    assert len(compared) == 3


# --- several processes ------------------------------------------------------------------------------------------

BUILD = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from model.images import cache, reading
from model.images.index import index_split
reading.FORK_SECONDS, reading.num_cores, cache.cache_lock.PATIENCE = {pays}, lambda: 3, {patience}
decode, seen = reading.decode, []
def slow(content, path):
    time.sleep({pause})
    seen.append(path)
    return decode(content, path)
reading.decode = slow
data = Path({data!r})
print("ready", flush=True)
sys.stdin.readline()
found = cache.open_decoded(index_split(data / "train", "train", data), 16, "crop", {wanted!r}, data / ".cache")
total = -1 if found.images is None else int(found.images[cache.np.arange(len(found.digests))].sum())
print(len(seen), total, found.form, found.note, sep="|", flush=True)
"""


@pytest.fixture(autouse=True)
def nobody_stays() -> Iterator[None]:
    """Whatever becomes of a test, the processes it started end with it."""
    yield
    while STARTED:
        with contextlib.suppress(OSError):
            os.killpg(STARTED.pop().pid, signal.SIGKILL)


STARTED: list[subprocess.Popen] = []


def send_line(process: subprocess.Popen) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def start(data: Path, wanted: str = "auto", pause: float = 0.01, pays: float = 9, patience: float = 60, go=True):
    """A process that builds the cache, `pause` seconds per image."""
    code = BUILD.format(root=str(ROOT), data=str(data), pause=pause, pays=pays, patience=patience, wanted=wanted)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    if go:
        send_line(process)
    return process


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def leftovers(data: Path) -> list[Path]:
    return list((data / ".cache").glob(".tmp-*"))


def is_building(data: Path) -> bool:
    return (data / ".cache").exists() and any(path.stat().st_size for path in (data / ".cache").glob(".tmp-*/.npy"))


def test_processes_that_start_at_once_build_it_once(data, tmp_path):
    expected = decoded(data, folder=tmp_path / "other")
    processes = [start(data, go=False) for _ in range(4)]
    for process in processes:
        send_line(process)
    lines = [process.communicate(timeout=60)[0].strip().split("|") for process in processes]
    assert sorted(int(line[0]) for line in lines) == [0, 0, 0, 36], lines
    assert {tuple(line[1:3]) for line in lines} == {(str(int(pixels(expected).sum())), "disk")}
    assert not leftovers(data)


@pytest.mark.parametrize("pays", [9, 0], ids=["one process", "several"])
def test_killed_in_the_middle_it_leaves_nothing_that_is_used(data, tmp_path, pays):
    process = start(data, pause=0.5, pays=pays)
    wait_for(lambda: is_building(data) and len(children(process.pid)) == (0 if pays else 3))
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL), process.wait()
    wait_for(lambda: not any(map(is_alive, workers)), 5)
    assert leftovers(data)
    assert ".json" not in names(data / ".cache")
    found = decoded(data)
    assert np.array_equal(pixels(found), pixels(decoded(data, folder=tmp_path / "other")))
    assert found.form == "disk"
    assert not leftovers(data)


@pytest.mark.parametrize("pays", [9, 0], ids=["one process", "several"])
def test_ctrl_c_ends_it_and_everybody_in_it(data, pays):
    process = start(data, pause=0.5, pays=pays)
    wait_for(lambda: is_building(data) and len(children(process.pid)) == (0 if pays else 3))
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=5)
    assert process.returncode == -signal.SIGINT
    assert errors.strip().endswith("KeyboardInterrupt")
    assert errors.count("Traceback") == 1  # nobody else has anything to say
    assert not any(map(is_alive, workers))
    assert not leftovers(data)
    assert ".json" not in names(data / ".cache")


def test_ctrl_c_is_left_to_the_process_that_builds(data):
    process = start(data, pause=0.2, pays=0)
    wait_for(lambda: is_building(data) and len(children(process.pid)) == 3)
    time.sleep(0.3)  # they are reading
    for worker in children(process.pid):
        os.kill(worker, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.strip().split("|")[2] == "disk"
    assert not errors


def test_nobody_waits_for_a_process_that_makes_no_progress(data, monkeypatch, capfd):
    process = start(data, pause=3)
    wait_for(lambda: is_building(data))
    monkeypatch.setattr(cache_lock, "PATIENCE", 0.3)
    monkeypatch.setattr(cache_lock, "SAY_AFTER", 0.1)
    found = decoded(data)
    assert found.form == "off"
    builder = f"process {process.pid} on {socket.gethostname()}"
    assert f"{builder} builds this cache and has made no progress for 0.3 seconds" in found.note
    assert f"waiting for {builder}, which builds the cache of decoded images" in capfd.readouterr().err
    with pytest.raises(UserError, match="has made no progress for 0.3 seconds; give another --cache_dir") as caught:
        decoded(data, "disk")
    assert caught.value.code == 5
    os.kill(process.pid, signal.SIGKILL)


def test_nobody_waits_for_a_process_that_is_stopped(data, monkeypatch, capfd):
    process = start(data, pause=0.2)
    wait_for(lambda: is_building(data))
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr(cache_lock, "SAY_AFTER", 0.2)
    monkeypatch.setattr(cache_lock, "STOPPED_PATIENCE", 0.5)
    begin = time.monotonic()
    found = decoded(data)
    assert time.monotonic() - begin < 10  # each fallback waited for PATIENCE again
    assert found.form == "off"
    builder = f"process {process.pid} on {socket.gethostname()}"
    assert f"{builder} builds this cache and is stopped" in found.note
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    # The way out works when it is pasted.
    (way_out,) = re.findall(r"continue it with (kill -CONT \d+)", lines[0])
    subprocess.run(shlex.split(way_out), check=True)
    assert process.communicate(timeout=60)[0].strip().split("|")[2] == "disk"  # and nothing was harmed
    assert decoded(data).form == "disk"
    assert not leftovers(data)


def test_a_process_that_takes_long_is_waited_for(data, monkeypatch):
    process = start(data, pause=0.1)  # some images are done each 1.6 seconds, all after 3.6
    wait_for(lambda: is_building(data))
    monkeypatch.setattr(cache_lock, "PATIENCE", 2.6)
    monkeypatch.setattr(reading, "decode", lambda *_: pytest.fail("decoded again"))
    assert decoded(data).form == "disk"
    process.communicate(timeout=60)


@pytest.mark.parametrize("wanted", ["disk", "ram", "off", "jpeg"])
def test_one_process_and_several_give_the_same(data, tmp_path, wanted, monkeypatch):
    (data / "train" / "class_1" / "003.png").write_bytes(b"no image")
    one = decoded(data, wanted, folder=tmp_path / "one")
    monkeypatch.setattr(reading, "FORK_SECONDS", 0), monkeypatch.setattr(reading, "num_cores", lambda: 3)
    decode = reading.decode
    monkeypatch.setattr(reading, "decode", lambda c, p: decode(c, p) if os.getpid() != here else pytest.fail("here"))
    here, before = os.getpid(), set(children(os.getpid()))
    several = decoded(data, wanted, folder=tmp_path / "several")
    assert np.array_equal(one.digests, several.digests)
    assert one.bad == several.bad
    assert list(one.bad) == [15]
    assert wanted == "off" or np.array_equal(pixels(one), pixels(several))
    assert not set(children(here)) - before


def test_a_process_that_dies_names_what_it_was_at(data, monkeypatch, always_fork):
    decode = reading.decode

    def fatal(content: bytes, path: str) -> np.ndarray:
        if path.endswith("class_1/003.png"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return decode(content, path)

    monkeypatch.setattr(reading, "decode", fatal)
    before = set(children(os.getpid()))
    with pytest.raises(ImageError, match="a process died while it read one of .*train/class_1/003.png") as caught:
        decoded(data)
    assert "\n" not in str(caught.value)
    assert not leftovers(data)
    assert not set(children(os.getpid())) - before


def test_a_disk_that_is_full_in_the_middle(data, always_fork):
    """For real: a limit on the size of files stands for it."""
    code = (
        "import resource, signal, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from model.images import cache, reading\n"
        "from model.images.index import index_split\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "reading.FORK_SECONDS, reading.num_cores = 0, lambda: 3\n"
        f"data = Path({str(data)!r})\n"
        "index = index_split(data / 'train', 'train', data)\n"
        "import os; del os.posix_fallocate\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "print(cache.open_decoded(index, 16, 'crop', 'auto', data / '.cache').note)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "File too large" in done.stdout, done.stderr
    assert not leftovers(data)


# --- forms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_streaming_and_every_exact_cache_give_the_same_pixels(photos, data, tmp_path, kind):
    folder, size = (photos, 72) if kind == "jpg" else (data, 40)
    for resize in ("crop", "squash", "letterbox"):
        values = {"im_sz": size, "resize": resize, "batch_size": 6}
        runs = [
            batches(
                loader(folder, cache=form, num_workers=workers, cache_dir=tmp_path / f"{form}{resize}", **values), 1
            )
            for form in ("off", "disk", "ram", "device")
            for workers in ((0, 1, 2) if form == "off" else (0, 1))
        ]
        assert all(are_equal(run, runs[0]) for run in runs)


def test_why_images_are_streamed_is_said(data, monkeypatch):
    exact = batches(loader(data))
    monkeypatch.setattr(cache, "MAX_AUTO_BYTES", 1 << 10)
    train = loader(data, cache_dir=data.parent / "other", num_workers=0)
    needed = f"{36 * 16 * 16 * 3 / 2**30:.3g} GiB"
    assert f"decoded each time, 0 workers; not cached: {needed} of images, 9.54e-07 GiB allowed" in train.description
    assert are_equal(batches(train), exact)
    monkeypatch.setattr(reading, "read_bytes", lambda path: pytest.fail("read again"))
    again = loader(data, cache_dir=data.parent / "other")
    assert again.fingerprint == train.fingerprint
    assert "not cached" in again.description
    monkeypatch.undo()
    usage = shutil.disk_usage(data)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 14))
    assert "a quarter of the 1.53e-05 GiB free on disk allowed" in loader(data, cache_dir=data.parent / "c").description
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda *_: False)  # what a read-only disk says; root may write anything else
    assert f"not cached: {data.parent} cannot be written" in loader(data, cache_dir=data.parent / "d").description


def test_a_jpeg_cache_is_close_to_the_images_and_used_again(photos, monkeypatch):
    exact = pixels(decoded(photos, "ram", 64)).astype(int)
    found = decoded(photos, "jpeg", 64)
    assert found.form == "jpeg"
    assert found.images is None
    assert names(photos / ".cache") >= {".jpegs", ".offsets"}
    error = abs(pixels(found) - exact)
    assert error.mean() < 3
    assert np.percentile(error, 99) < 20
    assert error.max() > 0
    monkeypatch.setattr(reading, "read_bytes", lambda path: pytest.fail("read again"))
    assert np.array_equal(pixels(decoded(photos, "jpeg", 64)), pixels(found))


def test_a_jpeg_cache_in_a_loader(photos):
    values = {"im_sz": 72, "batch_size": 6, "cache": "jpeg"}
    runs = [batches(loader(photos, num_workers=workers, **values), 2) for workers in (0, 1, 2)]
    assert are_equal(runs[0], runs[1])
    assert are_equal(runs[0], runs[2])
    both, exact = loaders(photos, "train", "valid", **values), loaders(photos, "train", "valid", im_sz=72)
    assert "decoded each time from JPEGs of 82 px" in both["train"].description
    assert both["train"].num_workers > 0
    assert both["train"].fingerprint != exact["train"].fingerprint  # a run does not change to them unnoticed
    assert both["valid"].fingerprint == exact["valid"].fingerprint
    read = both["valid"].source.read
    assert np.array_equal(read(np.arange(20)), exact["valid"].source.read(np.arange(20)))
    assert not np.array_equal(both["train"].source.read(np.arange(20)), exact["train"].source.read(np.arange(20)))


def test_a_part_of_train_that_validates_is_exact(photos):
    shutil.rmtree(photos / "valid")
    valid = loaders(photos, "train", "valid", im_sz=72, cache="jpeg", valid_fraction=0.3, num_workers=0)["valid"]
    exact = loaders(photos, "train", "valid", im_sz=72, cache="off", valid_fraction=0.3, num_workers=0)["valid"]
    assert are_equal(batches(valid), [(*a[:1], *b[1:]) for a, b in zip(batches(valid), batches(exact), strict=True)])
    source = valid.source
    assert np.array_equal(source.read(np.arange(6)), exact.source.read(np.arange(6)))
    assert "lossy, and for training alone" in valid.description
    assert valid.fingerprint == exact.fingerprint


def test_bad_images_in_a_jpeg_cache(photos):
    (photos / "train" / "a" / "3.jpg").write_bytes(b"no image")
    train = loader(photos, im_sz=72, cache="jpeg", on_bad_image="skip", num_workers=0)
    assert train.skipped == ["train/a/3.jpg"]
    assert train.num_images == 19
    exact = loader(photos, im_sz=72, cache="off", on_bad_image="skip", num_workers=0)
    error = abs(train.source.read(np.arange(19)).astype(int) - exact.source.read(np.arange(19)))
    assert error.mean((1, 2, 3)).max() < 4  # every image is the one that its name says


def test_the_parameter(tmp_path):
    assert make_params(cache="jpeg").cache == "jpeg"


# --- pixels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (64, 64), (300, 301), (90, 641), (700, 120), (20, 31)])
@pytest.mark.parametrize("size", [32, 256])
def test_a_base_image_is_what_torchvision_makes(shape, size):
    from torchvision.transforms.v2 import functional

    image = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)  # the hardest there is
    chw = torch.from_numpy(image).permute(2, 0, 1)
    expected = functional.center_crop(functional.resize(chw, [size], antialias=True), [size, size]).permute(1, 2, 0)
    error = np.abs(base_image(image, size, "crop").astype(int) - expected.numpy())
    is_long = max(shape) > 2 * min(shape)  # Pillow resizes those, to one level
    assert error.max() <= 1
    assert error.mean() < (0.5 if is_long else 1e-9)
    squashed = functional.resize(chw, [size, size], antialias=True).permute(1, 2, 0).numpy()
    assert np.array_equal(base_image(image, size, "squash"), squashed)


def test_a_long_image_needs_little_memory():
    """Whole, it would be 1,024,000 pixels wide: 786 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert base_image(noise(2, 8000), 256, "crop").shape == (256, 256, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_photographs_of_a_real_dataset():
    """Mean and 99.9th percentile of the difference to torchvision's Resize and CenterCrop, in levels."""
    from torchvision.transforms.v2 import functional

    archive = SHARED / "hymenoptera_data.tar"
    if not archive.exists():
        pytest.skip(f"{archive.name} is not there")
    errors = []
    with tarfile.open(archive) as members:
        for member in [member for member in members if member.name.endswith(".jpg")][::10]:
            file = members.extractfile(member)
            assert file
            image = decode(file.read(), member.name)
            chw = torch.from_numpy(image).permute(2, 0, 1)
            expected = functional.center_crop(functional.resize(chw, [256], antialias=True), [256, 256])
            errors.append(base_image(image, 256, "crop").astype(int) - expected.permute(1, 2, 0).numpy())
    errors = np.abs(np.stack(errors))
    assert errors.mean() < 0.5
    assert np.percentile(errors, 99.9) <= 2


# --- the bar ------------------------------------------------------------------------------------------------------


def test_a_bar_is_shown_on_a_terminal_when_it_takes_long(data, monkeypatch):
    def shown(seconds: float, folder: str) -> str:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        with open(theirs, "w") as terminal:
            monkeypatch.setattr(sys, "stderr", terminal)
            monkeypatch.setattr(reading, "BAR_SECONDS", seconds)
            decoded(data, folder=data.parent / folder)
            terminal.write("end"), terminal.flush()
            text = os.read(ours, 10_000).decode()
        os.close(ours)
        return text

    assert "reading train" in shown(1e-6, "a")
    assert shown(10, "b") == "end"


def test_what_is_long_is_a_question_of_bytes_too(data, monkeypatch):
    asked = []
    monkeypatch.setattr(
        reading, "_progress", lambda total, title, seconds: asked.append(seconds) or (lambda done: None)
    )
    index = index_split(data / "train", "train", data)
    reading.read_all(reading.DecodingPass(index, 16, "crop"))
    with open(data / "train" / "class_0" / "000.png", "ab") as file:
        file.truncate(100_000_000)
    reading.read_all(reading.DecodingPass(index_split(data / "train", "train", data), 16, "crop"))
    assert asked[0] < 0.1
    assert asked[1] > 0.5


def test_the_manifest_is_small(data):
    decoded(data)
    (path,) = (data / ".cache").glob("*.json")
    assert path.stat().st_size < 700
