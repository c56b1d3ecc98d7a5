"""Dataset folder -> loaders whose batches are ready for the net.

The order of an epoch is a function of (seed, epoch), the augmentation of an image of (seed, epoch, image), and
mixing of (seed, epoch, step, rank). So a loader has no state, and neither the number of workers, nor the machine, nor
an interruption changes a batch. Add a kind of dataset: one function and one line in DATASETS.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from include import IMAGENET_MEAN, IMAGENET_STD
from model.augment import Augment, make_augment, mix
from model.images import cache
from model.images.fetch import Fetcher, Stored
from model.images.folds import take_fold
from model.images.image_folder import base_size as base_size  # predict.py prepares its images in the same way
from model.images.image_folder import image_folder
from model.images.index import check_classes, describe_ignored
from model.images.order import EpochOrder, MicroBatch, make_order
from model.images.source import Source, mean_and_std
from model.images.split import Split
from model.images.subsets import limit
from model.nets.published import published_normalisation, published_tag
from model.pixels import progressive
from model.pixels.fused import one_thread
from model.pixels.normalise import BatchBuffer, Normalise
from params import Params
from utils import key64, lookup

# (splits, data_dir, params, im_sz or None, cache_dir) -> ({split: Source}, im_sz)
MakeSources = Callable[[list[str], Path, Params, int | None, Path], tuple[dict[str, Source], int]]
DATASETS: dict[str, MakeSources] = {"image_folder": image_folder}

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # images, labels, positions, weights


class Pinned(TypedDict):
    """What a run takes from its data at the first start and keeps from then on."""

    classes: list[str]
    mean: list[float]  # per channel, of pixels in [0, 1]
    std: list[float]
    im_sz: int


def pick_cache_dir(data_dir: Path | str, given: Path | None) -> Path:
    """Where decoded images and copies of published weights are kept: `given`, else beside the data."""
    return Path(given) if given else cache.default_dir(Path(data_dir))


def fetch_dataloader(  # noqa: PLR0913 (the seam between the rooms; all but three by keyword)
    splits: list[str],
    data_dir: Path | str,
    params: Params,
    *,
    device: str = "cpu",
    rank: int = 0,
    world: int = 1,
    cache_dir: Path | None = None,
    pinned: Mapping[str, Any] | None = None,
) -> dict[str, "Loader"]:
    """One loader for each of `splits`. `pinned`: what an earlier start of the run took from its data.

    UserError for whatever is wrong with the data or with the parameters about it.
    """
    data_dir = Path(data_dir)
    pinned = pinned or {}
    # Open the splits, and the further ones that statistics and folds need.
    make_sources: MakeSources = lookup(DATASETS, params.dataset, "dataset", params.folder)
    normalisation = (pinned["mean"], pinned["std"]) if "mean" in pinned else _stated_normalisation(params)
    opened = list(splits) if normalisation or "train" in splits else [*splits, "train"]
    fold = None if {"train", "valid"}.isdisjoint(opened) else params.fold
    if fold:
        opened = list(dict.fromkeys([*opened, "train", "valid"]))
    cache_dir = pick_cache_dir(data_dir, cache_dir)
    sources, im_sz = make_sources(opened, data_dir, params, pinned.get("im_sz"), cache_dir)
    classes = next(iter(sources.values())).index.classes
    if "classes" in pinned:
        check_classes(classes, pinned["classes"], str(data_dir), "the run")
    # Choose which of the images train and validate. Limiting is a parameter, not another dataset.
    if fold:
        sources = take_fold(sources, fold)
    fingerprints = {split: source.fingerprint() for split, source in sources.items() if split in splits}
    if "train" in sources and params.limit_train:
        sources["train"] = limit(sources["train"], params.limit_train, params.seed)
    # Make the loaders.
    mean, std = normalisation or mean_and_std(sources["train"])
    kept = Pinned(classes=classes, mean=list(mean), std=list(std), im_sz=im_sz)
    loaders = {}
    for split in splits:
        source = sources[split]
        order = make_order(source.index.labels, split == "train", params, rank, world)
        loaders[split] = Loader(source, order, params, kept, fingerprints[split], device)
    return loaders


def _stated_normalisation(params: Params) -> tuple[list[float], list[float]] | None:
    """Mean and std when they do not come from the data."""
    if not isinstance(params.normalize, str):
        mean, std = params.normalize
        return mean, std
    if params.normalize == "auto" and (tag := published_tag(params)):
        return published_normalisation(params.arch, tag)
    if params.normalize == "imagenet" or (params.normalize == "auto" and params.pretrain):
        return list(IMAGENET_MEAN), list(IMAGENET_STD)
    return None


class Loader(Split):
    """The batches of one split: `order` says which images, `fetcher` gets them, `_make_batch` does the rest."""

    def __init__(
        self, source: Source, order: EpochOrder, params: Params, pinned: Pinned, fingerprint: str, device: str = "cpu"
    ):
        super().__init__(source, order)
        self.params = params
        self.pinned = pinned
        self.fingerprint = fingerprint
        self.device = device
        self.im_sz = pinned["im_sz"]
        self.augment = make_augment(params, self.im_sz, source.size) if self.is_train else None
        self.fetcher = Fetcher(source, self.augment, params, device, order.micro_batch_size)
        self._labels = torch.from_numpy(source.index.labels)  # (N,) int32
        self._weights = self._make_weights()
        self._crop = self.augment or Augment([], self.im_sz, params.seed)  # evaluation takes the centre
        self._normalise = Normalise(self.im_sz, pinned["mean"], pinned["std"], device)

    # --- batches ---

    def batches(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """`accumulate` micro-batches per step, from `start_step` on. The images before it are not loaded.

        (images (B, 3, H, W) float32, channels last in memory; labels (B,) int64, or soft (B, K) when mixed;
        positions (B,) on the CPU; weights (B,), 0 for padding, 1 on average elsewhere)
        """
        buffer = BatchBuffer(self.im_sz, self.device)
        for micro_batch, stored in self.fetcher.fetch(epoch, self.order.micro_batches(epoch, start_step)):
            yield self._make_batch(buffer, epoch, micro_batch, stored)

    def _make_batch(self, buffer: BatchBuffer, epoch: int, micro_batch: MicroBatch, stored: Stored) -> Batch:
        """Base images -> what the net takes, on the device."""
        params, positions = self.params, torch.from_numpy(micro_batch.positions)
        # Augment, normalise and resize.
        with one_thread() if self.device == "cpu" else nullcontext():
            images = self._make_images(buffer, epoch, micro_batch, stored)
        labels = self._labels[positions].long().to(self.device, non_blocking=True)
        # Mix images and labels of training batches.
        if self.is_train and (params.mixup or params.cutmix):
            key = key64(params.seed, "mix", epoch, micro_batch.step, self.order.rank, micro_batch.number)
            images, labels = mix(images, labels, len(self.classes), params.mixup, params.cutmix, key)
        # Padding does not count.
        weights = torch.ones(len(positions), device=self.device)
        if self._weights is not None:
            weights = self._weights[positions].to(self.device, non_blocking=True)
        if micro_batch.num_real < len(positions):
            weights[micro_batch.num_real :] = 0
        return images, labels, positions, weights

    def _make_weights(self) -> Tensor | None:
        """(N,) the weights of training images, 1 on average; None where all are equal."""
        given = self.source.index.weights
        return torch.from_numpy(given / given.mean()).float() if self.is_train and given is not None else None

    def _make_images(self, buffer: BatchBuffer, epoch: int, micro_batch: MicroBatch, stored: Stored) -> Tensor:
        """(B, 3, side, side) float32, augmented, normalised and of the size that this epoch has."""
        images = buffer.take(len(micro_batch.positions))  # (B, im_sz, im_sz, 3)
        if self.fetcher.augments_each:
            self._normalise.write(stored.images, images)
        else:
            for part, pixels in self._crop.pieces(stored.images, stored.rows, epoch, micro_batch.positions):
                self._normalise.write(pixels, images[part])
        side = progressive.size_at(self.params, self.im_sz, epoch) if self.is_train else self.im_sz
        return progressive.resize(images.permute(0, 3, 1, 2), side)

    def close(self) -> None:
        """Free the memory on the device."""
        self.fetcher.close()

    # --- what is logged and recorded ---

    @property
    def num_workers(self) -> int:
        return self.fetcher.num_workers

    @property
    def description(self) -> str:
        """One line: the split, how its images are augmented and where they come from; notes."""
        source = self.source
        steps = [f"{self.split}: {self.num_images} images of {len(self.classes)} classes at {self.im_sz} px"]
        if self.augment:
            steps.append("augmented in batches" if self.augment.is_batched else "augmented per image")
        if self._weights is not None:
            steps.append("weighted as labels.csv says")
        if self.is_train and (sizes := progressive.describe_training_sizes(self.params, self.im_sz)):
            steps.append(sizes)
        steps += [self.fetcher.description, f"{self.num_workers} workers"]
        num_skipped = len(source.skipped)
        skipped = f"{num_skipped} unreadable images skipped" if num_skipped else ""
        ignored = describe_ignored(source.index.ignored)
        return "; ".join(filter(None, [", ".join(steps), source.note, *self.fetcher.notes, skipped, ignored]))

    @property
    def augmentation(self) -> dict[str, Any]:
        """What record/augm.json says."""
        record = self.augment.record() if self.augment else {"transform": None}
        names = [name for name in ("alternate_flip", "progressive") if self.is_train and getattr(self.params, name)]
        record |= {name: self.params.resolved()[name] for name in names}
        normalize = {"mean": self.pinned["mean"], "std": self.pinned["std"]}
        return record | {"mixup": self.params.mixup, "cutmix": self.params.cutmix, "normalize": normalize}
