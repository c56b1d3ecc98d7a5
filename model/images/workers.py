"""Worker processes that read the images of the next batches while the net computes.

No signal but SIGTERM from the parent reaches a worker, and a worker ends when its parent does. When one dies or
hangs, the error names the files that the workers were reading.
"""

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from model.augment import Augment
from model.images.decode import ImageError
from model.images.source import Source
from utils import die_with

WORKER_SECONDS = 300  # a worker that delivers no batch for this long is taken to hang
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# More workers than cores are the user's choice, and the log says how many there are.
warnings.filterwarnings("ignore", message="This DataLoader will create")
Key = tuple[int, np.ndarray]  # epoch, positions (B,)


class BatchReader(Dataset):
    """(epoch, positions) -> uint8 (B, S, S, 3) base images; (B, im_sz, im_sz, 3) when augmented one by one."""

    def __init__(self, source: Source, augment: Augment | None):
        self.source = source
        self.augment = augment if augment and not augment.is_batched else None
        self.current = multiprocessing.RawArray("q", 64)  # the position that each worker is working on

    def begin(self, position: int) -> None:
        """Note the position that is worked on, so that the parent can name the file of a worker that dies."""
        if worker := get_worker_info():
            self.current[worker.id % len(self.current)] = position

    def current_files(self, num_workers: int) -> list[str]:
        """The files that the workers are working on."""
        positions = [self.current[worker % len(self.current)] for worker in range(num_workers)]
        return list(dict.fromkeys(self.source.index.paths[position] for position in positions))

    def __getitem__(self, key: Key) -> np.ndarray:
        epoch, positions = key
        images = self.source.read(positions, self.begin)
        if self.augment:
            augmented = []
            for image, position in zip(images, positions.tolist(), strict=True):
                self.begin(position)
                augmented.append(self.augment.image(image, epoch, position))
            images = np.stack(augmented)
        return images


def read_in_workers(reader: BatchReader, keys: Iterator[Key], num_workers: int) -> Iterator[Tensor]:
    """reader[key] for each of `keys`, in order; `keys` is read two per worker ahead of what is taken.

    ImageError naming the files when a file cannot be read, or a worker dies or hangs.
    """
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=keys,  # pyright: ignore[reportArgumentType]
        num_workers=num_workers,
        worker_init_fn=partial(_start_worker, parent=os.getpid()),
        generator=torch.Generator(),  # its draw must not touch the default generator
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        collate_fn=torch.from_numpy,
        timeout=WORKER_SECONDS,
    )
    with signals_blocked():
        batches = iter(loader)
    try:
        yield from batches
    except ImageError as error:  # a worker's comes wrapped in its traceback
        raise ImageError(str(error).rpartition("ImageError: ")[2].strip()) from None
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        files = ", ".join(reader.current_files(num_workers))
        reason = " ".join(str(error).split())[:200]
        raise ImageError(
            f"a loader worker died or hung; the workers were reading {files}, below {reader.source.index.root} "
            f"({reason}). Look at them with build_dataset.py --check"
        ) from None


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Signals are delivered after the block. Processes forked in it keep them blocked for as long as they live."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(number: int, parent: int) -> None:
    """The first thing a worker does: tie its life to its parent's, and compute with one thread."""
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_end_when_told, args=(parent,), daemon=True).start()
    die_with(parent)
    torch.set_num_threads(1)


def _end_when_told(parent: int) -> None:
    """Exit on SIGTERM from the parent. It is blocked in workers, and the parent would wait for them for ever."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def free_shared_memory() -> int:
    """Free bytes in /dev/shm, where worker processes leave their batches."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return sys.maxsize
    return status.f_bavail * status.f_frsize
