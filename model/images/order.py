"""Which images each step of an epoch takes. A function of (seed, epoch) and the sizes alone: no state, no files.

A step of training takes `batch_size` images over all processes (ranks) and micro-batches; an evaluation takes them in
the order of the index.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from params import Params
from utils import UserError, key64


def position_dtype(num: int) -> type[np.unsignedinteger] | type[np.signedinteger]:
    """The integer type for `num` positions: uint32, half the memory of int64, as long as it is wide enough."""
    return np.uint32 if num <= 1 << 32 else np.int64


def shuffled(num: int, seed: int, epoch: int) -> np.ndarray:
    """(num,) a permutation of range(num): what a Philox generator keyed by (seed, epoch) makes of it."""
    positions = np.arange(num, dtype=position_dtype(num))
    _generator(seed, epoch).shuffle(positions)  # equals permutation(num), in half the memory
    return positions


def balanced(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """(N,) positions drawn with replacement so that every class has the same share. labels (N,) integers."""
    share = 1 / np.bincount(labels)[labels]
    return _generator(seed, epoch).choice(len(labels), len(labels), p=share / share.sum())


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key64(seed, "order", epoch)))


class MicroBatch(NamedTuple):
    """What one rank takes at once."""

    step: int  # of the epoch
    number: int  # of the micro-batch in its step
    positions: np.ndarray  # (B,) int64, in the index
    num_real: int  # the first images count; those after them are padding


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """The steps of an epoch of `num_images`, shared by `world` ranks and cut into `accumulate` micro-batches."""

    labels: np.ndarray  # (N,) integers
    batch_size: int
    seed: int
    is_train: bool
    sampler: str = "shuffle"
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @property
    def num_batches(self) -> int:
        """Optimizer steps (training) or batches (evaluation) per epoch.

        A last training batch of one image, which batch norm cannot take, joins the one before.
        """
        full, rest = divmod(self.num_images, self.batch_size)
        is_lone = self.is_train and rest == 1 and full > 0
        return full if rest == 0 or is_lone else full + 1

    @property
    def micro_batch_size(self) -> int:
        """Images in a full micro-batch of one rank."""
        return -(-self.batch_size // (self.world * self.accumulate))

    def bounds(self, step: int) -> tuple[int, int]:
        """Where the images of step `step` begin and end in the order of an epoch."""
        end = self.num_images if step == self.num_batches - 1 else (step + 1) * self.batch_size
        return step * self.batch_size, end

    def step_size(self, step: int) -> int:
        """Number of images in step `step` of an epoch, over all ranks and micro-batches."""
        start, end = self.bounds(step)
        return end - start

    def positions(self, epoch: int) -> np.ndarray:
        """(N,) positions in the order of this epoch; the same on every rank."""
        if not self.is_train:
            return np.arange(self.num_images, dtype=position_dtype(self.num_images))
        if self.sampler == "balanced":
            return balanced(self.labels, self.seed, epoch)
        return shuffled(self.num_images, self.seed, epoch)

    def positions_of_step(self, epoch: int, step: int) -> np.ndarray:
        """(B,) positions of the images in one step, over all ranks and micro-batches."""
        start, end = self.bounds(step)
        return self.positions(epoch)[start:end]

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[MicroBatch]:
        """This rank's micro-batches, `accumulate` per step, from `start_step` on.

        A step is cut into nearly equal parts, one per rank and micro-batch. Shorter parts are filled up with
        images of the same step, so that all ranks compute on equally many.
        """
        order = self.positions(epoch)
        num_parts = self.world * self.accumulate
        for step in range(start_step, self.num_batches):
            start, end = self.bounds(step)
            positions = order[start:end].astype(np.int64)
            parts = np.array_split(positions, num_parts) if num_parts > 1 else [positions]
            for number in range(self.accumulate):
                part = parts[number * self.world + self.rank]
                missing = len(parts[0]) - len(part)
                padding = np.resize(positions, missing)
                padded = np.concatenate([part, padding]) if missing else part
                yield MicroBatch(step, number, padded, len(part))


def make_order(labels: np.ndarray, is_train: bool, params: Params, rank: int = 0, world: int = 1) -> EpochOrder:
    """The order of a split with `labels` (N,). UserError when a batch cannot be split over ranks and micro-batches."""
    accumulate = params.accumulate if is_train else 1
    batch_size = params.batch_size if is_train else params.bs_test * world
    if batch_size < world * accumulate:
        parts = f"{world} processes x {accumulate} micro-batches"
        raise UserError(f"batch_size: {params.batch_size} images cannot be split into {parts}")
    return EpochOrder(labels, batch_size, params.seed, is_train, params.sampler, accumulate, rank, world)
