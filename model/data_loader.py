"""Dataset folder -> loaders whose batches are ready for the net.

The order of an epoch is a function of (seed, epoch), the augmentation of an image of (seed, epoch, image),
mixing of (seed, epoch, step, rank): a loader has no state; workers, machine and interruptions change nothing.
"""

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from include import IMAGENET_MEAN, IMAGENET_STD
from model.augment import Augment, make_augment, mix
from model.images import cache, folds
from model.images.decode import ImageError
from model.images.index import check_classes, describe_ignored
from model.images.source import Source, image_folder, limit, positions_type, statistics
from model.images.source import base_size as base_size  # predict.py prepares its images alike
from model.pixels import progressive
from model.pixels.fused import one_thread
from model.pixels.normalise import Normalise, Room
from params import Params
from utils import UserError, die_with, key64, lookup, num_cores

WORKER_SECONDS = 300  # without a batch: it hangs
Batch = tuple[Tensor, Tensor, Tensor, Tensor]

# name -> (splits, data_dir, params, im_sz or None, cache_dir) -> ({split: Source}, im_sz)
DATASETS: dict[str, Callable[..., tuple[dict[str, Source], int]]] = {"image_folder": image_folder}


def fetch_dataloader(
    splits: list[str],
    data_dir: Path | str,
    params: Params,
    *,
    device: str = "cpu",
    rank: int = 0,
    world: int = 1,
    cache_dir: Path | None = None,
    pinned: dict[str, Any] | None = None,
) -> dict[str, "Loader"]:
    """Loaders for `splits` alone. `pinned`: classes, mean, std, im_sz of an earlier start.

    Raises UserError for whatever is wrong with the data or with the parameters about it.
    """
    data_dir, pinned = Path(data_dir), pinned or {}
    make = lookup(DATASETS, params.dataset, "dataset", params.folder)
    cache_dir = Path(cache_dir) if cache_dir else cache.default_dir(data_dir)
    normalisation = (pinned["mean"], pinned["std"]) if "mean" in pinned else _stated(params)
    wanted = list(splits) if normalisation or "train" in splits else [*splits, "train"]
    is_folded = params.fold is not None and not {"train", "valid"}.isdisjoint(wanted)
    wanted = list(dict.fromkeys([*wanted, "train", "valid"])) if is_folded else wanted
    sources, im_sz = make(wanted, data_dir, params, pinned.get("im_sz"), cache_dir)
    classes = next(iter(sources.values())).index.classes
    if "classes" in pinned:
        check_classes(classes, pinned["classes"], str(data_dir), "the run")
    sources = folds.take(sources, params.fold) if is_folded and params.fold else sources
    fingerprints = {split: source.fingerprint() for split, source in sources.items() if split in splits}
    if "train" in sources and params.limit_train:
        sources["train"] = limit(sources["train"], params.limit_train, params.seed)
    mean, std = normalisation or statistics(sources["train"])
    pinned = {"classes": classes, "mean": list(mean), "std": list(std), "im_sz": im_sz}
    return {split: Loader(sources[split], params, pinned, fingerprints[split], device, rank, world) for split in splits}


def _stated(params: Params) -> tuple[Any, Any] | None:
    """Mean and std when they do not come from the data."""
    if isinstance(params.normalize, list | tuple):
        return params.normalize[0], params.normalize[1]
    if params.normalize == "imagenet" or (params.normalize == "auto" and params.pretrain):
        return IMAGENET_MEAN, IMAGENET_STD
    return None


class Images(Dataset):
    """(epoch, positions) -> uint8 (B, S, S, 3) base images; (B, im_sz, im_sz, 3) when augmented per image."""

    def __init__(self, source: Source, augment: Augment | None):
        self.source = source
        self.augment = augment if augment and not augment.batched else None
        self.at = multiprocessing.RawArray("q", 64)  # the position that each worker is busy with

    def begin(self, position: int) -> None:
        """Note what is being worked on: when a worker dies of it, the parent can name the file."""
        if worker := get_worker_info():
            self.at[worker.id % len(self.at)] = position

    def __getitem__(self, key: tuple[int, np.ndarray]) -> np.ndarray:
        epoch, positions = key
        images = self.source.read(positions, self.begin)
        if self.augment:
            augmented = []
            for image, position in zip(images, positions.tolist(), strict=True):
                self.begin(position)
                augmented.append(self.augment.image(image, epoch, position))
            images = np.stack(augmented)
        return images


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@contextmanager
def no_signals() -> Iterator[None]:
    """Signals wait, here until the end of the block, and for ever in the children that are forked in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(number: int, parent: int) -> None:
    """A worker ends with its parent or at its word, and computes with one thread. No other signal reaches it."""
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_end_when_told, args=(parent,), daemon=True).start()
    die_with(parent)
    torch.set_num_threads(1)


def _end_when_told(parent: int) -> None:
    """SIGTERM is blocked in a worker, see no_signals; the parent's must end it, or that would wait for it for ever."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def shared_memory() -> int:
    """Free bytes where worker processes leave their batches."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return sys.maxsize
    return found.f_bavail * found.f_frsize


class Loader:
    """The batches of one split. See fetch_dataloader."""

    def __init__(
        self,
        source: Source,
        params: Params,
        pinned: dict[str, Any],
        fingerprint: str,
        device: str = "cpu",
        rank: int = 0,
        world: int = 1,
    ):
        index = source.index
        self.split, self.params, self.pinned, self.device = index.split, params, pinned, device
        self.fingerprint, self.rank, self.world = fingerprint, rank, world
        self.classes, self.paths, self.labels = index.classes, index.paths, index.labels
        self.root, self.fold = index.root, source.fold
        self.num_images, self.skipped, self.class_counts = (
            len(index),
            list(source.skipped),
            source.class_counts(),
        )
        self.is_train = self.split == "train"
        self.im_sz = pinned["im_sz"]
        self.augment = make_augment(params, self.im_sz, source.size) if self.is_train else None
        self.accumulate = params.accumulate if self.is_train else 1
        self.batch_size = params.batch_size if self.is_train else params.bs_test * world
        if self.batch_size < world * self.accumulate:
            parts = f"{world} processes x {self.accumulate} micro-batches"
            raise UserError(f"batch_size: {params.batch_size} images cannot be split into {parts}")
        self.images = Images(source, self.augment)
        self.resident = self._to_device(source) if self._may_reside(source) else None
        self.notes: list[str] = []
        self.num_workers = self._choose_workers(source)
        self._labels = torch.from_numpy(index.labels)  # (N,) int32
        self._normalise = Normalise(pinned, device)
        self._cut = self.augment or Augment([], self.im_sz, params.seed)  # evaluation takes the centre
        self._store, self._rows = self._choose_store(source)
        self.description = self._describe(source)

    def _may_reside(self, source: Source) -> bool:
        """Whether all base images are to lie on the device; never when they are augmented per image."""
        if source.images is None or self.images.augment:
            return False
        if self.params.cache == "device":
            return True
        if self.params.cache != "auto" or not self.device.startswith("cuda"):
            return False
        num_bytes = len(source.index) * source.size**2 * 3
        return num_bytes <= 0.25 * torch.cuda.mem_get_info(torch.device(self.device))[0]  # free

    def _to_device(self, source: Source) -> Tensor:
        return torch.from_numpy(source.read(np.arange(self.num_images))).to(self.device)

    def _choose_store(self, source: Source) -> tuple[Tensor | None, np.ndarray]:
        """Where batches are cut from without a copy of their images before, and the row there of each position."""
        if self.resident is not None:
            return self.resident, np.arange(self.num_images)
        if not isinstance(source.images, np.ndarray) or self.images.augment or self.num_workers or self.device != "cpu":
            return None, source.rows
        with warnings.catch_warnings():  # the memory map can only be read, and nobody writes
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(source.images), source.rows

    def _choose_workers(self, source: Source) -> int:
        """0 where a batch is a copy out of the cache; those that decode or augment per image get company."""
        if self.resident is not None:
            return 0
        is_cheap = source.images is not None and self.images.augment is None
        wanted = 0 if is_cheap else min(8, max(1, num_cores() - 1))
        if self.params.num_workers is not None:
            wanted = self.params.num_workers
        side = self.im_sz if self.images.augment else source.size
        needed = wanted * 2 * self.rows * side**2 * 3  # two batches wait for each worker
        if wanted and shared_memory() < needed:
            free = f"{shared_memory() >> 20} MiB of shared memory are free, {-(-needed >> 20)} MiB are needed"
            self.notes.append(f"no workers: {free} for {wanted}")
            return 0
        return wanted

    def _describe(self, source: Source) -> str:
        kept = {"off": "decoded each time", "jpeg": f"decoded each time from JPEGs of {source.size} px"}
        kept = kept.get(source.form, f"decoded images on {source.form}")
        kept = f"decoded images on {self.device}" if self.resident is not None else kept
        road = ["augmented in batches" if self.augment.batched else "augmented per image"] if self.augment else []
        road += [text] if self.is_train and (text := progressive.describe(self.params, self.im_sz)) else []
        what = f"{self.num_images} images of {len(self.classes)} classes at {self.im_sz} px"
        parts = [", ".join([f"{self.split}: {what}", *road, kept, f"{self.num_workers} workers"])]
        parts += [source.note] if source.note else []
        parts += self.notes
        parts += [f"{len(self.skipped)} unreadable images skipped"] if self.skipped else []
        parts += [text] if (text := describe_ignored(source.index.ignored)) else []
        return "; ".join(parts)

    @property
    def augmentation(self) -> dict[str, Any]:
        """What record/augm.json says."""
        record = self.augment.record() if self.augment else {"transform": None}
        normalize = {key: self.pinned[key] for key in ("mean", "std")}
        names = [name for name in ("alternate_flip", "progressive") if self.is_train and getattr(self.params, name)]
        record |= {name: self.params.resolved()[name] for name in names}
        return record | {"mixup": self.params.mixup, "cutmix": self.params.cutmix, "normalize": normalize}

    def close(self) -> None:
        """Give the device's memory back."""
        self.resident = self._store = None

    # --- batches ---

    @property
    def num_batches(self) -> int:
        """Optimizer steps (training) or batches (evaluation) per epoch.

        A last training batch of one image, which batch norm cannot take, joins the one before.
        """
        full, rest = divmod(self.num_images, self.batch_size)
        is_lone = self.is_train and rest == 1 and full > 0
        return full if rest == 0 or is_lone else full + 1

    def _bounds(self, step: int) -> tuple[int, int]:
        end = self.num_images if step == self.num_batches - 1 else (step + 1) * self.batch_size
        return step * self.batch_size, end

    def step_size(self, step: int) -> int:
        """Images in step `step` of an epoch, over all ranks and micro-batches."""
        start, end = self._bounds(step)
        return end - start

    def order(self, epoch: int) -> np.ndarray:
        """(N,) dataset positions in the order of this epoch; the same on every rank."""
        positions = np.arange(self.num_images, dtype=positions_type(self.num_images))
        if not self.is_train:
            return positions
        rng = np.random.Generator(np.random.Philox(key=key64(self.params.seed, "order", epoch)))
        if self.params.sampler == "balanced":
            share = 1 / np.array(self.class_counts)[self.labels]
            return rng.choice(self.num_images, self.num_images, p=share / share.sum())
        rng.shuffle(positions)  # what rng.permutation(self.num_images) gives, in half the memory
        return positions

    @property
    def rows(self) -> int:
        """Images in a full micro-batch of this rank."""
        return -(-self.batch_size // (self.world * self.accumulate))

    def files(self, epoch: int, step: int) -> list[str]:
        """Paths, below the dataset folder, of the images in one step of an epoch, over all ranks."""
        start, end = self._bounds(step)
        return list(self.paths[self.order(epoch)[start:end]])

    def _parts(self, epoch: int, start_step: int) -> Iterator[tuple[int, int, np.ndarray, int]]:
        """(step, micro-batch, positions, number of them that count) for this rank.

        A step is cut into nearly equal parts, one per rank and micro-batch; all get the same number of rows
        by images that weigh 0.
        """
        order, num_parts = self.order(epoch), self.world * self.accumulate
        for step in range(start_step, self.num_batches):
            start, end = self._bounds(step)
            positions = order[start:end].astype(np.int64)
            parts = np.array_split(positions, num_parts) if num_parts > 1 else [positions]
            for micro in range(self.accumulate):
                part = parts[micro * self.world + self.rank]
                missing = len(parts[0]) - len(part)
                padding = np.resize(positions, missing)
                yield step, micro, np.concatenate([part, padding]) if missing else part, len(part)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """`accumulate` micro-batches per step, from `start_step` on. The images before it are not loaded.

        (images (B, 3, H, W) float32, channels last in memory; labels (B,) int64 or soft (B, K);
        positions (B,) on the CPU; weights (B,), 0 for padding)
        """
        parts, ready = self._parts(epoch, start_step), partial(self._ready, Room(self.im_sz, self.device))
        if self.num_workers == 0:
            for part in parts:
                yield ready(self._fetch(epoch, part[2]), epoch, *part)
            return
        ahead, parts = itertools.tee(parts)  # holds what the workers are ahead of the batches, no more
        loader = DataLoader(
            self.images,
            batch_size=None,
            sampler=((epoch, part[2]) for part in ahead),  # type: ignore[arg-type]
            num_workers=self.num_workers,
            worker_init_fn=partial(_start_worker, parent=os.getpid()),
            generator=torch.Generator(),  # its draw must not touch the default generator
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            collate_fn=torch.from_numpy,
            timeout=WORKER_SECONDS,
        )
        with no_signals():
            raw = iter(loader)
        try:
            for images, part in zip(raw, parts, strict=True):
                yield ready(images, epoch, *part)
        except ImageError as error:  # a worker's comes wrapped in its traceback
            raise ImageError(str(error).rpartition("ImageError: ")[2].strip()) from None
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            busy = [self.paths[self.images.at[worker % 64]] for worker in range(self.num_workers)]
            reason = " ".join(str(error).split())[:200]
            raise ImageError(
                f"a loader worker died or hung; the workers were at {', '.join(dict.fromkeys(busy))}, below "
                f"{self.root} ({reason}). Look at them with build_dataset.py --check"
            ) from None

    def _fetch(self, epoch: int, positions: np.ndarray) -> Tensor | None:
        """What a worker would give; None when the batch can be cut from where the images lie."""
        return torch.from_numpy(self.images[epoch, positions]) if self._store is None else None

    def _ready(
        self, room: Room, raw: Tensor | None, epoch: int, step: int, micro: int, positions: np.ndarray, real: int
    ) -> Batch:
        """What `_fetch` or a worker gave -> what the net takes, on the device."""
        with one_thread() if self.device == "cpu" else nullcontext():
            images = self._pixels(room, raw, epoch, positions)
        indices = torch.from_numpy(positions)
        labels = self._labels[indices].long().to(self.device, non_blocking=True)
        params = self.params
        if self.is_train and (params.mixup or params.cutmix):
            key = key64(params.seed, "mix", epoch, step, self.rank, micro)
            images, labels = mix(images, labels, len(self.classes), params.mixup, params.cutmix, key)
        weights = torch.ones(len(positions), device=self.device)
        if real < len(positions):
            weights[real:] = 0
        return images, labels, indices, weights

    def _pixels(self, room: Room, raw: Tensor | None, epoch: int, positions: np.ndarray) -> Tensor:
        """(B, 3, side, side) float32, augmented, normalised and of the size that this epoch has."""
        if raw is not None:
            store, rows = raw.to(self.device, non_blocking=True), np.arange(len(positions))
        else:
            assert self._store is not None
            store, rows = self._store, self._rows[positions].astype(np.int64)
        images = room.empty(len(positions))
        if self.images.augment:  # done, in a worker
            self._normalise.into(store, images)
        else:
            for part, pixels in self._cut.pieces(store, rows, epoch, positions):
                self._normalise.into(pixels, images[part])
        side = progressive.size_at(self.params, self.im_sz, epoch) if self.is_train else self.im_sz
        return progressive.resize(images.permute(0, 3, 1, 2), side)
