"""What `fit` yields, and what it raises when the numbers are no longer finite."""

from dataclasses import dataclass

from engine.state import Row


@dataclass(frozen=True)
class Step:
    """Where training stands, and the means since the Step before.

    due: False when only control was wanted; waiting: the share of the time since then that went into waiting for data.
    """

    epoch: int
    step: int
    learning_rate: list[float]
    loss: float
    values: dict[str, float]
    images_per_second: float
    due: bool = True
    waiting: float = 0.0


@dataclass(frozen=True)
class Epoch:
    """A finished epoch: its row of the history, and the best row so far, None when no value was ever finite."""

    epoch: int
    step: int
    row: Row
    best: Row | None

    @property
    def is_best(self) -> bool:
        return self.best is self.row


@dataclass(frozen=True)
class EvalStep:
    """A batch of the evaluation is done, and control was wanted."""

    epoch: int
    step: int


Event = Step | Epoch | EvalStep


class NonFiniteLoss(Exception):
    """The loss or the weights became NaN or infinite. `epoch`, `step`: the batch where, both from 0, if known."""

    def __init__(self, message: str, epoch: int | None = None, step: int | None = None):
        super().__init__(message)
        self.epoch = epoch
        self.step = step


def describe(event: Epoch, num_epochs: float) -> str:
    """One line for an epoch."""
    row = event.row
    parts = [f"epoch {event.epoch}/{num_epochs:g}"]
    for split in ("train", "val"):
        values = {key.removeprefix(f"{split}_"): value for key, value in row.items() if key.startswith(f"{split}_")}
        parts.append(
            f"{split} " + " ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None)
        )
    parts.append(f"{row['seconds']:.1f} s, {row['images_per_second']:.0f} images/s")
    return "  ".join(parts) + ("  *best*" if event.is_best else "")
