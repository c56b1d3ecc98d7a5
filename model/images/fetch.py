"""Where the base images of a batch come from: the device, the cache, this process, or workers."""

import itertools
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.augment import Augment
from model.images import workers
from model.images.cached.intact import CheckedImages
from model.images.order import MicroBatch
from model.images.source import Source
from params import Params
from utils import num_cores


class Stored(NamedTuple):
    """The images of a batch: rows (B,) of images (M, S, S, 3) uint8, which may hold others too."""

    images: Tensor
    rows: np.ndarray


class Fetcher:
    """Fetches the images of one split; chooses how, and says so in `description` and `notes`."""

    def __init__(self, source: Source, augment: Augment | None, params: Params, device: str, micro_batch_size: int):
        self.reader = workers.BatchReader(source, augment)
        self.device = device
        self.notes: list[str] = []
        self.is_resident = self._may_reside(source, params)
        side = self.reader.augment.im_sz if self.reader.augment else source.size
        batch_bytes = micro_batch_size * side**2 * 3
        self.num_workers = 0 if self.is_resident else self._choose_workers(source, params, batch_bytes)
        self.stored = self._open_stored(source)

    @property
    def augments_each(self) -> bool:
        """Whether images come augmented already, one by one."""
        return self.reader.augment is not None

    @property
    def description(self) -> str:
        source = self.reader.source
        if self.is_resident:
            return f"decoded images on {self.device}"
        if source.form == "off":
            return "decoded each time"
        if source.form == "jpeg":
            return f"decoded each time from JPEGs of {source.size} px"
        return f"decoded images on {source.form}"

    def _may_reside(self, source: Source, params: Params) -> bool:
        """True if all base images are kept on the device; never when they are augmented one by one."""
        if source.images is None or self.augments_each:
            return False
        if params.cache == "device":
            return True
        if params.cache != "auto" or not self.device.startswith("cuda"):
            return False
        num_bytes = len(source.index) * source.size**2 * 3
        free = torch.cuda.mem_get_info(torch.device(self.device))[0]
        return num_bytes <= 0.25 * free

    def _choose_workers(self, source: Source, params: Params, batch_bytes: int) -> int:
        """None where a batch is a copy out of the cache; some where images are decoded or augmented one by one."""
        is_cheap = source.images is not None and not self.augments_each
        number = 0 if is_cheap else min(8, max(1, num_cores() - 1))
        if params.num_workers is not None:
            number = params.num_workers
        needed = number * 2 * batch_bytes  # two batches wait for each worker
        if number and workers.free_shared_memory() < needed:
            free = workers.free_shared_memory()
            amounts = f"{free >> 20} MiB of shared memory are free, {-(-needed >> 20)} MiB are needed"
            self.notes.append(f"no workers: {amounts} for {number}")
            return 0
        return number

    def _open_stored(self, source: Source) -> Stored | None:
        """All images of the split where batches can be cut from them without copying them first."""
        num = len(source.index)
        if self.is_resident:
            return Stored(torch.from_numpy(source.read(np.arange(num))).to(self.device), np.arange(num))
        array = source.images.array if isinstance(source.images, CheckedImages) else source.images
        if not isinstance(array, np.ndarray) or self.augments_each or self.num_workers or self.device != "cpu":
            return None
        with warnings.catch_warnings():  # the memory map is read-only, and nothing writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return Stored(torch.from_numpy(array), source.cache_rows)

    def _are_intact(self, rows: np.ndarray) -> bool:
        """Whether these images may be taken from where they are stored."""
        images = self.reader.source.images
        return self.is_resident or not isinstance(images, CheckedImages) or images.are_intact(rows)

    def fetch(self, epoch: int, micro_batches: Iterator[MicroBatch]) -> Iterator[tuple[MicroBatch, Stored]]:
        """Each of `micro_batches` with its images. ImageError when a file cannot be read."""
        if self.num_workers:
            yield from self._fetch_in_workers(epoch, micro_batches)
            return
        for micro_batch in micro_batches:
            positions = micro_batch.positions
            rows = None if self.stored is None else self.stored.rows[positions].astype(np.int64)
            if self.stored is not None and rows is not None and self._are_intact(rows):
                yield micro_batch, Stored(self.stored.images, rows)
            else:
                yield micro_batch, self._whole(torch.from_numpy(self.reader[epoch, positions]))

    def _fetch_in_workers(self, epoch: int, micro_batches: Iterator[MicroBatch]) -> Iterator[tuple[MicroBatch, Stored]]:
        # `tee` keeps the micro-batches that the workers are ahead of what is taken, and no more.
        ahead, micro_batches = itertools.tee(micro_batches)
        keys = ((epoch, micro_batch.positions) for micro_batch in ahead)
        read = workers.read_in_workers(self.reader, keys, self.num_workers)
        for images, micro_batch in zip(read, micro_batches, strict=True):
            yield micro_batch, self._whole(images)

    def _whole(self, images: Tensor) -> Stored:
        return Stored(images.to(self.device, non_blocking=True), np.arange(len(images)))

    def close(self) -> None:
        """Give the device's memory back."""
        self.stored = None
