"""Dataset folder -> index -> loaders whose batches are ready for the net.

The order of an epoch is a function of (seed, epoch), the augmentation of an image of (seed, epoch, image),
mixing of (seed, epoch, step, rank): a loader has no state, and workers, machine and interruptions change nothing.
"""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from include import IMAGENET_MEAN, IMAGENET_STD
from model import cache
from model.augment import Augment, fit_batch, make_augment, mix
from model.images import ImageError, base_image, image_size, read_image
from model.index import Index, check_classes, describe_ignored, find_splits, index_split
from params import Params
from utils import UserError, key64, lookup

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass
class Source:
    """One split before it is loaded: files, digests, and base images when they are kept."""

    index: Index
    digests: list[str]
    images: np.ndarray | None  # (M, S, S, 3) of the whole folder
    rows: np.ndarray  # (N,) where each file's image is in `images`
    skipped: list[str]
    form: str


def base_size(im_sz: int) -> int:
    """The side of the images that are cached: room for a random crop above 64 px."""
    return im_sz if im_sz <= 64 else round(im_sz * 256 / 224)


def image_folder(splits: list[str], data_dir: Path, params: Params, im_sz: int | None, cache_dir: Path) -> dict[str, Any]:
    """{train,valid,test}/CLASS/IMAGE -> {split: Source} for `splits`, and "im_sz". No other split is opened."""
    folders = find_splits(data_dir)
    if "test" in splits and "test" not in folders:
        raise UserError(f"{data_dir} has no test split; possible: {', '.join(folders)}, or --split valid")
    indexes = {split: index_split(folder, split, data_dir) for split, folder in folders.items() if split in {*splits, "train"}}
    for split, index in indexes.items():
        check_classes(index.classes, indexes["train"].classes, str(folders[split]), str(folders["train"]))
    im_sz = im_sz or params.im_sz or _native_size(indexes["train"])
    sources: dict[str, Any] = {"im_sz": im_sz}
    needed = [split for split in indexes if split in splits or (split == "train" and "valid" in splits and "valid" not in folders)]
    decoded = {split: _decode(indexes[split], params, im_sz, cache_dir) for split in needed}
    if "valid" not in folders and {"train", "valid"} & set(splits):
        whole = decoded.pop("train")
        valid = _split_by_content(whole, params.valid_fraction)
        decoded |= {"train": _subset(whole, ~valid, "train"), "valid": _subset(whole, valid, "valid")}
    return sources | {split: decoded[split] for split in splits}


DATASETS: dict[str, Callable[..., dict[str, Any]]] = {"image_folder": image_folder}


def _native_size(index: Index) -> int:
    """The median short side of up to 200 evenly spaced images when that is at most 64, else 224."""
    sides = []
    for position in np.linspace(0, len(index) - 1, min(200, len(index))).astype(int):
        try:
            sides.append(min(image_size(index.root / index.paths[position])))
        except ImageError:
            continue
    side = int(np.median(sides)) if sides else 224
    return max(8, side) if side <= 64 else 224


def _decode(index: Index, params: Params, im_sz: int, cache_dir: Path) -> Source:
    size = base_size(im_sz)
    form = cache.choose_form(params.cache, len(index), size, cache_dir)
    found = cache.open_decoded(index, size, params.resize, form, cache_dir)
    if found.bad and params.on_bad_image == "error":
        reasons = "; ".join(list(found.bad.values())[:5])
        raise UserError(f"{len(found.bad)} of {len(index)} {index.split} images cannot be used: {reasons}"
                        f"{'; ...' if len(found.bad) > 5 else ''}. Repair them, or set on_bad_image to skip")  # fmt: skip
    keep = np.array([i for i in range(len(index)) if i not in found.bad])
    whole = Source(index, found.digests, found.images, np.arange(len(index)), [], found.form)
    mask = np.zeros(len(index), bool)
    mask[keep] = True
    source = _subset(whole, mask, index.split)
    source.skipped = [index.paths[i] for i in found.bad]
    source.index.ignored = index.ignored
    return source


def _subset(source: Source, mask: np.ndarray, split: str) -> Source:
    positions = np.flatnonzero(mask)
    index = source.index.select(positions.tolist(), split)
    index.ignored = source.index.ignored if split == "train" else index.ignored
    digests = [source.digests[i] for i in positions]
    return Source(index, digests, source.images, source.rows[positions], source.skipped if split == "train" else [], source.form)


def _split_by_content(source: Source, fraction: float) -> np.ndarray:
    """(N,) True for valid: of each class the files with the smallest digests, so that names and copies do not matter."""
    labels, digests = np.array(source.index.labels), np.array(source.digests)
    valid = np.zeros(len(labels), bool)
    for label in range(len(source.index.classes)):
        members = np.flatnonzero(labels == label)
        order = members[np.argsort(digests[members], kind="stable")]
        count = min(max(1, round(fraction * len(order))), len(order) - 1)
        if count < 1:
            name = source.index.classes[label]
            raise UserError(f"class {name!r} has {len(order)} image; two are needed to split a valid part off")
        while count < len(order) and digests[order[count]] == digests[order[count - 1]]:
            count += 1  # identical files stay together
        valid[order[:count]] = True
    return valid


def _limit(source: Source, limit: float, seed: int) -> Source:
    """The first `limit` (number or share) images of a random order that keeps the proportions of the classes."""
    num = len(source.index)
    count = min(num, limit if isinstance(limit, int) else max(1, round(limit * num)))
    order = np.random.Generator(np.random.Philox(key=key64(seed, "limit"))).permutation(num)
    labels = np.array(source.index.labels)[order]
    place = np.empty(num)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    mask = np.zeros(num, bool)
    mask[order[np.argsort(place, kind="stable")[:count]]] = True
    return _subset(source, mask, source.index.split)


def _statistics(source: Source, size: int, resize: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, in [0, 1], of up to 20,000 evenly spaced images (2,000 when not kept)."""
    most = 20_000 if source.images is not None else 2_000
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for position in np.unique(np.linspace(0, len(source.rows) - 1, min(most, len(source.rows))).astype(int)):
        image = source.images[source.rows[position]] if source.images is not None else _read(source, position, size, resize)
        pixels = image.reshape(-1, 3).astype(np.int64)
        total, squares, count = total + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
    return [round(v, 6) for v in (mean / 255).tolist()], [round(max(v, 1e-3), 6) for v in (std / 255).tolist()]


def _read(source: Source, position: int, size: int, resize: str) -> np.ndarray:
    return base_image(read_image(source.index.root / source.index.paths[position]), size, resize)


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
    """Loaders for `splits` alone. `pinned`: classes, mean, std and im_sz of an earlier start, used instead of derived.

    Raises UserError for whatever is wrong with the data or with the parameters about it.
    """
    data_dir, pinned = Path(data_dir), dict(pinned or {})
    make = lookup(DATASETS, params.dataset, "dataset", params.folder)
    sources = make(splits, data_dir, params, pinned.get("im_sz"), cache_dir or cache.default_dir(data_dir))
    im_sz = sources.pop("im_sz")
    classes = next(iter(sources.values())).index.classes
    if "classes" in pinned:
        check_classes(classes, pinned["classes"], str(data_dir), "the run")
    if params.n_clas not in (None, len(classes)):
        raise UserError(f"n_clas: {params.n_clas} given, but {data_dir} has {len(classes)} classes: {', '.join(classes[:8])}")
    if "train" in sources and params.limit_train:
        sources["train"] = _limit(sources["train"], params.limit_train, params.seed)
    if "mean" not in pinned:
        pinned["mean"], pinned["std"] = _normalisation(params, sources, im_sz)
    pinned = {"classes": classes, "mean": pinned["mean"], "std": pinned["std"], "im_sz": im_sz}
    return {split: Loader(source, params, pinned, device, rank, world) for split, source in sources.items()}


def _normalisation(params: Params, sources: dict[str, Source], im_sz: int) -> tuple[list[float], list[float]]:
    if isinstance(params.normalize, list):
        return params.normalize[0], params.normalize[1]
    if params.normalize == "imagenet" or (params.normalize == "auto" and params.pretrain):
        return list(IMAGENET_MEAN), list(IMAGENET_STD)
    return _statistics(sources.get("train") or next(iter(sources.values())), base_size(im_sz), params.resize)


class Images(Dataset):
    """(epoch, positions) -> uint8 (B, S, S, 3) base images; (B, im_sz, im_sz, 3) when augmented here, per image."""

    def __init__(self, source: Source, size: int, resize: str, augment: Augment | None):
        self.source, self.size, self.resize = source, size, resize
        self.augment = augment if augment and not augment.batched else None

    def __getitem__(self, key: tuple[int, np.ndarray]) -> np.ndarray:
        epoch, positions = key
        if self.source.images is not None:
            images: Any = self.source.images[self.source.rows[positions]]
        else:
            images = np.stack([_read(self.source, i, self.size, self.resize) for i in positions])
        if self.augment:
            images = np.stack([self.augment.image(image, epoch, int(i)) for image, i in zip(images, positions, strict=True)])
        return images


def _start_worker(number: int) -> None:
    """Signals are the parent's business, and threads too: a worker has one."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)


class Loader:
    """The batches of one split. See fetch_dataloader."""

    def __init__(self, source: Source, params: Params, pinned: dict[str, Any], device: str, rank: int, world: int):
        index = source.index
        self.split, self.params, self.pinned, self.device = index.split, params, pinned, device
        self.rank, self.world = rank, world
        self.classes, self.paths, self.labels = index.classes, index.paths, index.labels
        self.num_images, self.skipped = len(index), source.skipped
        self.class_counts = np.bincount(index.labels, minlength=len(index.classes)).tolist()
        if self.split == "train" and min(self.class_counts) == 0:
            empty = [name for name, count in zip(self.classes, self.class_counts, strict=True) if not count]
            raise UserError(f"limit_train: nothing is left of class {empty[0]!r}; take at least {len(self.classes)} images")
        self.is_train = self.split == "train"
        self.im_sz, size = pinned["im_sz"], base_size(pinned["im_sz"])
        self.augment = make_augment(params, self.im_sz, size) if self.is_train else None
        self.accumulate = params.accumulate if self.is_train else 1
        self.batch_size = params.batch_size if self.is_train else params.bs_test * world
        if self.is_train and params.batch_size < world * params.accumulate:
            raise UserError(f"batch_size: {params.batch_size} cannot be split into {world} x {params.accumulate} parts")
        self.images = Images(source, size, params.resize, self.augment)
        self.resident: Tensor | None = None
        if source.images is not None and self._on_device(source, device, params.cache):
            self.resident = torch.from_numpy(np.ascontiguousarray(source.images[source.rows])).to(device)
        self.num_workers = self._workers(source)
        self._labels = torch.tensor(index.labels)
        self._mean = torch.tensor(pinned["mean"], device=device).mul(255).view(1, 3, 1, 1)
        self._scale = torch.tensor(pinned["std"], device=device).mul(255).reciprocal().view(1, 3, 1, 1)
        self.fingerprint = self._fingerprint(source)
        self.description = self._describe(source)

    def _on_device(self, source: Source, device: str, wanted: str) -> bool:
        if wanted == "device" and (self.augment is None or self.augment.batched):
            return True
        if wanted != "auto" or not device.startswith("cuda") or (self.augment and not self.augment.batched):
            return False
        return source.images.nbytes <= 0.4 * torch.cuda.mem_get_info(torch.device(device))[0]  # type: ignore[union-attr]

    def _workers(self, source: Source) -> int:
        if self.resident is not None:
            return 0
        if self.params.num_workers is not None:
            return self.params.num_workers
        cheap = source.images is not None and self.images.augment is None
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return 0 if cheap else min(8, max(1, cores - 1))

    def _fingerprint(self, source: Source) -> str:
        index = source.index
        rows = sorted(zip(index.paths, index.sizes, source.digests, index.labels, strict=True))
        return hashlib.sha256(repr(rows).encode()).hexdigest()

    def _describe(self, source: Source) -> str:
        road = "" if not self.augment else f", augmented {'in batches' if self.augment.batched else 'per image'}"
        kept = {"off": "decoded each time"}.get(source.form, f"decoded once ({'on ' + self.device if self.resident is not None else source.form})")
        parts = [f"{self.split}: {self.num_images} images of {len(self.classes)} classes at {self.im_sz} px{road}, {kept}, {self.num_workers} workers"]
        parts += [f"{len(self.skipped)} unreadable images skipped"] if self.skipped else []
        parts += [text] if (text := describe_ignored(source.index.ignored)) else []
        return "; ".join(parts)

    @property
    def augmentation(self) -> dict[str, Any]:
        """What record/augm.json says."""
        record = self.augment.record() if self.augment else {"transform": None}
        return record | {"mixup": self.params.mixup, "cutmix": self.params.cutmix, "normalize": {k: self.pinned[k] for k in ("mean", "std")}}

    # --- batches ---

    @property
    def num_batches(self) -> int:
        """Optimizer steps (training) or batches (evaluation) per epoch. A last batch of one image joins the one before."""
        full, rest = divmod(self.num_images, self.batch_size)
        lone = self.is_train and rest == 1 and full > 0
        return full if rest == 0 or lone else full + 1

    def _bounds(self, step: int) -> tuple[int, int]:
        end = self.num_images if step == self.num_batches - 1 else (step + 1) * self.batch_size
        return step * self.batch_size, end

    def step_size(self, step: int) -> int:
        """Images in step `step` of an epoch, over all ranks and micro-batches."""
        start, end = self._bounds(step)
        return end - start

    def order(self, epoch: int) -> np.ndarray:
        """(N,) dataset positions in the order of this epoch."""
        if not self.is_train:
            return np.arange(self.num_images)
        rng = np.random.Generator(np.random.Philox(key=key64(self.params.seed, "order", epoch)))
        if self.params.sampler == "balanced":
            share = 1 / np.array(self.class_counts)[self.labels]
            return rng.choice(self.num_images, self.num_images, p=share / share.sum())
        return rng.permutation(self.num_images)

    def _parts(self, epoch: int, start_step: int) -> Iterator[tuple[int, int, np.ndarray, int]]:
        """(step, micro-batch, positions, number of them that count) for this rank."""
        order, num_parts = self.order(epoch), self.world * self.accumulate
        for step in range(start_step, self.num_batches):
            start, end = self._bounds(step)
            parts = np.array_split(order[start:end], num_parts)
            largest = len(parts[0])
            for micro in range(self.accumulate):
                part = parts[micro * self.world + self.rank]
                real = len(part)
                if self.world > 1 and real < largest:  # every rank gets as many rows; those too many weigh 0
                    part = np.concatenate([part, np.resize(order[start:end], largest - real)])
                yield step, micro, part, real

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """(images (B, 3, H, W), labels (B,) or soft (B, K), positions (B,), weights (B,)), from `start_step` on."""
        parts = self._parts(epoch, start_step)
        if self.num_workers == 0:
            for part in parts:
                yield self._ready(self._fetch(epoch, part[2]), epoch, *part)
            return
        planned = list(parts)
        raw = DataLoader(
            self.images,
            batch_size=None,
            sampler=[(epoch, part[2]) for part in planned],  # type: ignore[arg-type]
            num_workers=self.num_workers,
            prefetch_factor=2,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # its draw must not touch the default generator
            multiprocessing_context="fork" if hasattr(os, "fork") else None,
            collate_fn=torch.from_numpy,
            timeout=300,
        )
        for images, part in zip(raw, planned, strict=True):
            yield self._ready(images, epoch, *part)

    def _fetch(self, epoch: int, positions: np.ndarray) -> Tensor:
        if self.resident is not None:
            return self.resident[torch.from_numpy(positions).to(self.device)]
        return torch.from_numpy(self.images[epoch, positions])

    def _ready(self, images: Tensor, epoch: int, step: int, micro: int, positions: np.ndarray, real: int) -> Batch:
        """uint8 (B, S, S, 3) -> what the net takes, on the device, channels last."""
        images = images.to(self.device, non_blocking=True)
        if self.augment and self.augment.batched:
            images = self.augment.batch(images, epoch, positions)
        images = fit_batch(images, self.im_sz).permute(0, 3, 1, 2).float().sub_(self._mean).mul_(self._scale)
        indices = torch.from_numpy(positions)
        labels = self._labels[indices].to(self.device, non_blocking=True)
        params = self.params
        if self.is_train and (params.mixup or params.cutmix):
            key = key64(params.seed, "mix", epoch, step, self.rank, micro)
            images, labels = mix(images, labels, len(self.classes), params.mixup, params.cutmix, key)
        weights = torch.ones(len(positions), device=self.device)
        if real < len(positions):
            weights[real:] = 0
        return images, labels, indices, weights
