"""What a loader knows about its split without reading a pixel: classes, files, and how many batches there are."""

import numpy as np

from model.images.order import EpochOrder
from model.images.paths import Paths
from model.images.source import FoldRecord, Source


class Split:
    """One split of a dataset, in the order that `order` gives it. The base of a Loader."""

    def __init__(self, source: Source, order: EpochOrder):
        self.source = source
        self.order = order

    @property
    def split(self) -> str:
        return self.source.index.split

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the dataset has."""
        return self.source.index.splits

    @property
    def is_train(self) -> bool:
        return self.order.is_train

    @property
    def classes(self) -> list[str]:
        return self.source.index.classes

    @property
    def class_counts(self) -> list[int]:
        """Number of images of each class."""
        return self.source.class_counts()

    @property
    def num_images(self) -> int:
        return len(self.source.index)

    @property
    def paths(self) -> Paths:
        """The files, below the dataset folder; positions in batches are positions in it."""
        return self.source.index.paths

    @property
    def labels(self) -> np.ndarray:
        """(N,) int32, positions in `classes`."""
        return self.source.index.labels

    @property
    def digests(self) -> np.ndarray:
        """(N, 16) uint8, of the content of each file."""
        return self.source.digests[self.source.cache_rows]

    @property
    def skipped(self) -> list[str]:
        """Files that cannot be used."""
        return list(self.source.skipped)

    @property
    def fold(self) -> FoldRecord | None:
        return self.source.fold

    @property
    def batch_size(self) -> int:
        """Images per step, over all ranks and micro-batches."""
        return self.order.batch_size

    @property
    def micro_batch_size(self) -> int:
        """Images in a full micro-batch of this rank."""
        return self.order.micro_batch_size

    @property
    def accumulate(self) -> int:
        """Micro-batches per step."""
        return self.order.accumulate

    @property
    def num_batches(self) -> int:
        """Optimizer steps (training) or batches (evaluation) per epoch."""
        return self.order.num_batches

    def step_size(self, step: int) -> int:
        """Number of images in step `step` of an epoch, over all ranks and micro-batches."""
        return self.order.step_size(step)

    def files(self, epoch: int, step: int) -> list[str]:
        """Paths of the images in one step of an epoch, over all ranks and micro-batches."""
        return list(self.paths[self.order.positions_of_step(epoch, step)])
