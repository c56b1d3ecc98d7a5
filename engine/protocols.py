"""What the engine needs from a loader and a metric: protocols, which model/ implements without importing them.

train.py and evaluate.py pass the parts of model/ in; the type checker compares them with the protocols there.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""(images (B, 3, H, W) float32, labels (B,) int64 or soft (B, K), positions (B,) on the CPU, weights (B,)).

A weight of 0 marks padding: that image counts in no sum and in no mean.
"""


class Names(Protocol):
    """Names by position; too many for a list of str when there are millions."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> str: ...


class WeightsReport(Protocol):
    """Which weights a net starts from; as text, one line for the log."""

    def record(self) -> Mapping[str, str]:
        """For the folder: where they are from, their SHA-256, and how many tensors were loaded."""
        ...


@runtime_checkable
class Metric(Protocol):
    """(logits (B, K), labels (B,) or (B, K)) -> one value per image (B,), or one number for a whole split."""

    @property
    def per_image(self) -> bool:
        """True: (B,) values, whose mean over the split is reported. False: one number over all logits of a split."""
        ...

    @property
    def minimize(self) -> bool:
        """True when lower is better."""
        ...

    def __call__(self, logits: Tensor, labels: Tensor, /) -> Tensor | float: ...


@runtime_checkable
class Loader(Protocol):
    """The batches of one split for one rank."""

    # --- what the loop needs ---

    @property
    def num_batches(self) -> int:
        """Number of optimizer steps (training) or batches (evaluation) in an epoch."""
        ...

    @property
    def accumulate(self) -> int:
        """Number of micro-batches in an optimizer step."""
        ...

    @property
    def micro_batch_size(self) -> int:
        """Number of images in a full micro-batch of this rank."""
        ...

    def step_size(self, step: int, /) -> int:
        """Number of images in step `step` of an epoch, over all ranks and micro-batches."""
        ...

    def batches(self, epoch: int, start_step: int = 0, /) -> Iterator[Batch]:
        """The micro-batches of an epoch, `accumulate` per step, from `start_step` on."""
        ...

    # --- what is recorded and shown ---

    @property
    def classes(self) -> Sequence[str]:
        """(K,) names of the classes, in the order of the net's outputs."""
        ...

    @property
    def class_counts(self) -> Sequence[int]:
        """(K,) number of images of each class."""
        ...

    @property
    def splits(self) -> Sequence[str]:
        """Names of the splits that the dataset has."""
        ...

    @property
    def num_images(self) -> int:
        """Number of images in the split."""
        ...

    @property
    def paths(self) -> Names:
        """(N,) paths of the images below the dataset folder, by position."""
        ...

    @property
    def digests(self) -> "np.ndarray":
        """(N, 16) uint8, of the content of each file, by position."""
        ...

    @property
    def fingerprint(self) -> str:
        """The identity of the split: its names, sizes and contents."""
        ...

    @property
    def pinned(self) -> Mapping[str, Any]:
        """What later starts must have in common with the first: classes, mean, std and im_sz."""
        ...

    @property
    def fold(self) -> Mapping[str, Any] | None:
        """The fold that record/fold.json describes; None without cross-validation."""
        ...

    @property
    def augmentation(self) -> dict[str, Any]:
        """The content of record/augm.json."""
        ...

    @property
    def description(self) -> str:
        """One line for the log."""
        ...

    def files(self, epoch: int, step: int, /) -> Sequence[str]:
        """Paths of the images in one step of an epoch, over all ranks."""
        ...
