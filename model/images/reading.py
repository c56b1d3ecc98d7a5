"""One pass over the files of a split: digest, decode, resize; by several processes where that pays.

Decoding holds Python's lock, so that threads would wait for each other: processes are forked instead.
"""

import hashlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.context import ForkContext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.images.decode import ImageError, base_image, decode, read_bytes
from model.images.index import Index
from utils import die_with, num_cores

DIGEST = 16  # bytes of a file's digest
PER_FILE, PER_BYTE = 2e-5, 1.5e-8  # seconds of one process: CIFAR-10; photographs of 120 kB
PAYS, LONG = 0.2, 1.5  # seconds from which more processes pay; from which one wants to see a bar
MOST = 32  # processes


@dataclass
class Job:
    """What happens to each file. Its base image goes to `keep`, where it was made, and to `encode`, or nowhere.

    `keep(first, images (B, S, S, 3))` stores in a file or memory that the processes share; what `encode` makes
    of each image comes back to `take`, in order. `tick` is called now and then.
    """

    index: Index
    size: int
    resize: str
    keep: Callable[[int, np.ndarray], None] | None = None
    encode: Callable[[np.ndarray], bytes] | None = None
    take: Callable[[list[bytes]], None] = lambda encoded: None
    tick: Callable[[], None] = lambda: None
    at: Any = field(default_factory=lambda: multiprocessing.RawArray("q", MOST))  # where each process is


Part = tuple[bytes, dict[int, str], list[bytes]]  # digests, what is wrong with which file, encoded images


def read_all(job: Job) -> tuple[np.ndarray, dict[int, str]]:
    """Digests (N, 16) uint8, zeros where a file cannot be read, and position -> reason of the bad files.

    OSError when what `keep` or `take` store cannot be stored. ImageError naming files when a process dies.
    """
    num = len(job.index)
    num_bytes = int(np.maximum(job.index.sizes, 0).sum())
    seconds = num * PER_FILE + num_bytes * PER_BYTE
    num_processes = min(MOST, num_cores()) if seconds > PAYS and can_fork() else 1
    step = 256 if num_bytes < num * 16_384 else 16
    step = min(step, -(-num // (4 * num_processes)))  # all have something to do until the end
    parts = [range(at, min(at + step, num)) for at in range(0, num, step)]
    digests, bad = np.zeros((num, DIGEST), np.uint8), {}
    show = _progress(num, f"reading {job.index.split}", seconds / num_processes)
    results = _in_processes(job, parts, num_processes) if num_processes > 1 else (_read(job, part) for part in parts)
    try:
        for part, (digest, wrong, encoded) in zip(parts, results, strict=True):
            digests[part.start : part.stop] = np.frombuffer(digest, np.uint8).reshape(-1, DIGEST)
            bad |= wrong
            job.take(encoded)
            job.tick()
            show(len(part))
    finally:
        results.close()
        show(0)
    return digests, bad


def _read(job: Job, positions: range, slot: int = 0) -> Part:
    prefix = os.path.join(job.index.root, "")
    digests, bad = bytearray(), {}
    are_wanted = job.keep or job.encode
    images = np.zeros((len(positions), job.size, job.size, 3), np.uint8) if are_wanted else None
    for number, position in enumerate(positions):
        job.at[slot] = position
        path, digest = prefix + job.index.paths[position], bytes(DIGEST)
        try:
            data = read_bytes(path)
            digest = hashlib.blake2b(data, digest_size=DIGEST).digest()
            image = decode(data, path)
            if images is not None:
                images[number] = base_image(image, job.size, job.resize)
        except ImageError as error:
            bad[position] = str(error)
        digests += digest
    if job.keep and images is not None:
        job.keep(positions.start, images)
    encoded = [job.encode(image) for image in images] if job.encode and images is not None else []
    return bytes(digests), bad, encoded


# --- processes ----------------------------------------------------------------------------------------


def can_fork() -> bool:
    """Not where fork is unsafe (macOS), nor in a process that may have no children."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon and num_cores() > 1


def _in_processes(job: Job, parts: list[range], num: int) -> Iterator[Part]:
    """_read(job, part) for each part, in order. However it ends, no process stays behind."""
    context, others = ForkContext(), set(multiprocessing.active_children())
    arguments = (job, context.Value("i", 0), os.getpid())
    pool = ProcessPoolExecutor(num, context, _start, arguments)  # type: ignore[arg-type]
    is_done = False
    try:
        # Ctrl-C reaches the whole terminal: it waits until the processes have been told to leave it to this one.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            results = pool.map(_read_part, parts)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from results
        is_done = True
    except BrokenProcessPool:
        busy = dict.fromkeys(job.index.paths[position] for position in job.at[:num])
        raise ImageError(
            f"a process died while it read one of {', '.join(busy)}, below {job.index.root}. "
            "Look at them with build_dataset.py --check"
        ) from None
    finally:
        if not is_done:
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
        pool.shutdown(cancel_futures=True)


_JOB: Job
_SLOT: int


def _start(job: Job, counter: Any, parent: int) -> None:
    """A process of the pool: ends with its parent, leaves Ctrl-C to it, computes with one thread."""
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
    """A bar on a terminal for passes that take a while; nothing elsewhere."""
    if seconds < LONG or sys.stderr is None or not sys.stderr.isatty():
        return lambda done: None
    from tqdm import tqdm

    bar = tqdm(total=total, desc=title, unit="image", leave=False)
    return lambda done: bar.update(done) if done else bar.close()


def keep_in_file(path: str | Path, start: int) -> Callable[[int, np.ndarray], None]:
    """`keep` of a Job: into a file, image by image from byte `start` on. OSError: the disk is full."""

    def keep(first: int, images: np.ndarray) -> None:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            rest, at = memoryview(images).cast("B"), start + first * images[0].nbytes
            while rest:
                done = os.pwrite(descriptor, rest, at)
                rest, at = rest[done:], at + done
        finally:
            os.close(descriptor)

    return keep
