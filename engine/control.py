"""When the loop must hand over control: a signal came, a checkpoint is due, or a progress bar is to be redrawn."""

import os
import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING

from engine.distributed import World
from engine.events import Epoch, Event, Step
from utils import UserError

if TYPE_CHECKING:  # imported when a bar is shown: on a terminal alone
    from tqdm import tqdm

# Why the loop should pause, by rising urgency: not at all, to redraw the bar, to save, or to save and exit because of a
# signal (100 plus its number). All ranks act on the highest value of any rank.
NOTHING, SHOW, SAVE = 0, 1, 2
SIGNALLED = 100  # plus the number of the signal
SHOW_SECONDS = 0.5  # between two drawings of the progress bar
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Interrupted(UserError):
    """The state is saved because a signal asked the run to end. The process exits with 128 + the signal's number."""

    prefix = ""

    def __init__(self, number: int, step: int):
        name = signal.Signals(number).name
        super().__init__(f"{name}: saved at step {step}; the same command continues", 128 + number)


class Paused(Interrupted):
    """The epoch of --until is reached, and the state is saved. The process exits with 0."""

    def __init__(self, epoch: int, step: int):
        UserError.__init__(
            self, f"paused after epoch {epoch}, step {step}; the same command without --until goes on", 0
        )


class Control:
    """`wants()` is asked after each step and each evaluation batch; it is cheap. All ranks get the same answer."""

    def __init__(self, checkpoint_minutes: float, world: World):
        self.world = world
        self.number = 0  # of a signal that came to this process
        self.answer = NOTHING  # of the last `wants()`
        self.interval = checkpoint_minutes * 60
        self.saved = time.monotonic()
        self.shown = time.monotonic()
        self.watched = sys.__stderr__ is not None and sys.__stderr__.isatty()
        self.handlers: dict[signal.Signals, object] = {}  # the ones that were there before `open`

    def open(self) -> None:
        """Start catching signals."""
        self.handlers = {number: signal.signal(number, self._note) for number in SIGNALS}

    def close(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType] # what signal.signal returned

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)  # a second signal ends the process at once; the last commit remains
        self.number = number

    def wants(self) -> bool:
        """True when the loop must hand over control now."""
        now = time.monotonic()
        wish = NOTHING
        if self.watched and now - self.shown > SHOW_SECONDS:
            wish = SHOW
        if now - self.saved >= self.interval:
            wish = SAVE
        if self.number:
            wish = SIGNALLED + self.number
        self.answer = self.world.agree(wish)
        return self.answer > NOTHING

    @property
    def signal(self) -> int:
        """The signal that ends the run, as of the last `wants()`; 0 without one."""
        return max(self.answer - SIGNALLED, 0)

    @property
    def save_due(self) -> bool:
        """True when the state is to be committed, as of the last `wants()`."""
        return self.answer >= SAVE

    def note_save(self) -> None:
        """The state has been saved: `checkpoint_minutes` count from now."""
        self.saved = time.monotonic()


class Bar:
    """A progress bar per epoch on a terminal; nothing elsewhere."""

    def __init__(self, control: Control, num_batches: int):
        self.control = control
        self.num_batches = num_batches
        self.bar: tqdm | None = None

    def show(self, event: Event, epoch_step: int) -> None:
        """Draw the progress of the epoch that began at step `epoch_step`."""
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
