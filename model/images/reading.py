"""One pass over the files of a split: digest, decode, resize; in several processes where that is faster.

Decoding holds Python's interpreter lock, so that threads would wait for each other: processes are forked instead.
"""

import ctypes
import hashlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.context import ForkContext
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from model.images.cached.intact import MAX_ROWS, block_digest, digests_of_blocks
from model.images.decode import ImageError, base_image, decode, read_bytes
from model.images.index import Index
from utils import die_with, num_cores

DIGEST_SIZE = 16  # bytes of a file's digest
SECONDS_PER_FILE = 2e-5  # of one process; measured on CIFAR-10
SECONDS_PER_BYTE = 1.5e-8  # measured on photographs of 120 kB
FORK_SECONDS = 0.2  # a pass that takes longer in one process is shared by several
BAR_SECONDS = 1.5  # a pass that takes longer shows a bar
MAX_PROCESSES = 32


@dataclass
class DecodingPass:
    """What happens to each file of `index` besides computing its digest.

    In the process that decoded the images: `keep(first, images (B, S, S, 3))` stores them in a file or memory that the
    processes share, and `encode(image)` makes bytes of one. In the process that started the pass: `take` gets these
    bytes, in the order of the files, and `tick` is called after each part, to show that the pass is alive. Without
    `decodes`, files are only hashed.
    """

    index: Index
    size: int
    resize: str
    keep: Callable[[int, np.ndarray], None] | None = None
    encode: Callable[[np.ndarray], bytes] | None = None
    take: Callable[[list[bytes]], None] = lambda encoded: None
    tick: Callable[[], None] = lambda: None
    decodes: bool = True
    current: "ctypes.Array[ctypes.c_longlong]" = field(  # the position that each process is working on
        default_factory=lambda: multiprocessing.RawArray("q", MAX_PROCESSES)
    )


class Part(NamedTuple):
    """The result of a part of the pass."""

    digests: bytes
    bad: dict[int, str]  # position -> what is wrong with the file
    encoded: list[bytes]  # images
    blocks: list[bytes]  # digests of the blocks of images


class Reading(NamedTuple):
    """The result of a whole pass."""

    digests: np.ndarray  # (N, 16) uint8, zeros where a file cannot be read
    bad: dict[int, str]  # position -> what is wrong with the file
    blocks: list[bytes]  # digests of the blocks of images: of each JPEG where images are encoded


def digest_of(data: bytes) -> bytes:
    """Of the content of a file."""
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


def read_all(job: DecodingPass) -> Reading:
    """Read every file.

    OSError when `keep` or `take` cannot store something. ImageError naming files when a process dies.
    """
    # Estimate the work; choose the number of processes and the size of a part.
    num = len(job.index)
    num_bytes = int(np.maximum(job.index.sizes, 0).sum())
    seconds = num * SECONDS_PER_FILE + num_bytes * SECONDS_PER_BYTE
    num_processes = min(MAX_PROCESSES, num_cores()) if seconds > FORK_SECONDS and can_fork() else 1
    step = 256 if num_bytes < num * 16_384 else 16
    step = min(step, -(-num // (4 * num_processes)))  # small enough that all processes are busy until the end
    step = -(-step // MAX_ROWS) * MAX_ROWS  # whole blocks
    parts = [range(at, min(at + step, num)) for at in range(0, num, step)]
    # Read part after part.
    digests = np.zeros((num, DIGEST_SIZE), np.uint8)
    bad: dict[int, str] = {}
    blocks: list[bytes] = []
    show = _progress(num, f"reading {job.index.split}", seconds / num_processes)
    results = _in_processes(job, parts, num_processes) if num_processes > 1 else (_read(job, part) for part in parts)
    try:
        for positions, part in zip(parts, results, strict=True):
            digests[positions.start : positions.stop] = np.frombuffer(part.digests, np.uint8).reshape(-1, DIGEST_SIZE)
            bad |= part.bad
            blocks += part.blocks
            job.take(part.encoded)
            job.tick()
            show(len(positions))
    finally:
        results.close()
        show(0)
    return Reading(digests, bad, blocks)


def _read(job: DecodingPass, positions: range, slot: int = 0) -> Part:
    """The files at `positions`, in this process, which is number `slot`."""
    prefix = os.path.join(job.index.root, "")
    digests = bytearray()
    bad: dict[int, str] = {}
    has_use = job.keep or job.encode
    images = np.zeros((len(positions), job.size, job.size, 3), np.uint8) if has_use else None
    for number, position in enumerate(positions):
        job.current[slot] = position
        path, digest = prefix + job.index.paths[position], bytes(DIGEST_SIZE)
        try:
            data = read_bytes(path)
            digest = digest_of(data)
            image = decode(data, path) if job.decodes else None
            if image is not None and images is not None:
                images[number] = base_image(image, job.size, job.resize)
        except ImageError as error:
            bad[position] = str(error)
        digests += digest
    encoded: list[bytes] = []
    blocks: list[bytes] = []
    if job.keep and images is not None:
        job.keep(positions.start, images)
        blocks = digests_of_blocks(images)
    elif job.encode and images is not None:
        encoded = [job.encode(image) for image in images]
        blocks = [block_digest(data) for data in encoded]
    return Part(bytes(digests), bad, encoded, blocks)


# --- processes ----------------------------------------------------------------------------------------


def can_fork() -> bool:
    """False where forking is unsafe (macOS), in a process that may have no children, and with one core."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon and num_cores() > 1


def _in_processes(job: DecodingPass, parts: list[range], num: int) -> Generator[Part, None, None]:
    """_read(job, part) for each part, in order. However the pass ends, no process stays behind."""
    context, others = ForkContext(), set(multiprocessing.active_children())
    arguments = (job, context.Value("i", 0), os.getpid())
    pool = ProcessPoolExecutor(num, context, _start, arguments)
    is_done = False
    try:
        # Ctrl-C goes to every process of the terminal. It is delayed until the new processes ignore it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            results = pool.map(_read_part, parts)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from results
        is_done = True
    except BrokenProcessPool:
        busy = dict.fromkeys(job.index.paths[position] for position in job.current[:num])
        raise ImageError(
            f"a process died while it read one of {', '.join(busy)}, below {job.index.root}. "
            "Look at them with build_dataset.py --check"
        ) from None
    finally:
        if not is_done:
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
        pool.shutdown(cancel_futures=True)


_JOB: DecodingPass  # of this process of the pool
_SLOT: int


def _start(job: DecodingPass, counter: "Synchronized[int]", parent: int) -> None:
    """The first thing a process of the pool does: end with its parent, ignore Ctrl-C, compute with one thread."""
    global _JOB, _SLOT
    die_with(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(1)
    _JOB = job
    with counter.get_lock():
        _SLOT = counter.value
        counter.value += 1


def _read_part(part: range) -> Part:
    return _read(_JOB, part, _SLOT)


def _progress(total: int, title: str, seconds: float) -> Callable[[int], None]:
    """What to call with the number of files done, and with 0 at the end; a bar on a terminal when it takes long."""
    if seconds < BAR_SECONDS or sys.stderr is None or not sys.stderr.isatty():
        return lambda done: None
    from tqdm import tqdm

    bar = tqdm(total=total, desc=title, unit="image", leave=False)

    def show(num_done: int) -> None:
        if num_done:
            bar.update(num_done)
        else:
            bar.close()

    return show


def keep_in_file(path: str | Path, start: int) -> Callable[[int, np.ndarray], None]:
    """A `keep` that writes the images into a file, one after the other from byte `start` on. OSError: a full disk."""

    def keep(first: int, images: np.ndarray) -> None:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            rest, at = images.data.cast("B"), start + first * images[0].nbytes
            while rest:
                done = os.pwrite(descriptor, rest, at)
                rest, at = rest[done:], at + done
        finally:
            os.close(descriptor)

    return keep
