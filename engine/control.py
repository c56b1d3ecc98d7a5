"""When the loop must give way: a signal came, a checkpoint is due, or somebody watches a progress bar."""

import os
import signal
import sys
import time
from types import FrameType
from typing import Any

from engine.distributed import World
from engine.loop import Epoch, Event, Step
from utils import UserError

SAVE, SIGNALLED = 2, 100  # answers, the more urgent the larger
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Interrupted(UserError):
    """A signal asked for the end, and the state is saved. The process exits with 128 + its number."""

    prefix = ""

    def __init__(self, number: int, step: int):
        name = signal.Signals(number).name
        super().__init__(f"{name}: saved at step {step}; the same command continues", 128 + number)


class Paused(Interrupted):
    """As far as --until asked. The process exits with 0."""

    def __init__(self, epoch: int, step: int):
        UserError.__init__(
            self, f"paused after epoch {epoch}, step {step}; the same command without --until goes on", 0
        )


class Control:
    """`wants()` is asked after each step and each evaluation batch; it is cheap. All ranks get the same answer."""

    def __init__(self, checkpoint_minutes: float, world: World):
        self.world = world
        self.number = 0  # of a signal that came to this process
        self.answer = 0
        self.interval = checkpoint_minutes * 60
        self.saved = self.shown = time.monotonic()
        self.watched = sys.__stderr__ is not None and sys.__stderr__.isatty()
        self.handlers = {number: signal.signal(number, self._note) for number in SIGNALS}

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)  # asked twice: at once, the last commit stands
        self.number = number

    def wants(self) -> bool:
        """Whether the loop must give way now."""
        now = time.monotonic()
        wish = SAVE if now - self.saved >= self.interval else int(self.watched and now - self.shown > 0.5)
        self.answer = self.world.agree(SIGNALLED + self.number if self.number else wish)
        return self.answer > 0

    @property
    def signal(self) -> int:
        """The signal that ends the run, as of the last `wants()`; 0 without one."""
        return max(self.answer - SIGNALLED, 0)

    @property
    def save_due(self) -> bool:
        """Whether the state is to be committed, as of the last `wants()`."""
        return self.answer >= SAVE

    def saved_now(self) -> None:
        self.saved = time.monotonic()


class Bar:
    """A tqdm bar per epoch on a terminal; nothing elsewhere."""

    def __init__(self, control: Control, num_batches: int):
        self.control, self.num_batches = control, num_batches
        self.bar: Any = None

    def show(self, event: Event, epoch_step: int) -> None:
        if not self.control.watched:
            return
        self.control.shown = time.monotonic()
        if isinstance(event, Epoch):
            self.close()
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(
                total=self.num_batches, desc=f"epoch {event.epoch}", leave=False, file=sys.__stderr__, unit="step"
            )
        self.bar.update(event.step - epoch_step - self.bar.n)
        if isinstance(event, Step):
            self.bar.set_postfix_str(f"loss {event.loss:.4f}, {event.images_per_second:.0f} images/s")
        else:
            self.bar.set_postfix_str("evaluating")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
