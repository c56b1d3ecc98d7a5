"""Events for TensorBoard."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import threading
import warnings
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from engine.observers.base import Inside, Observer
from include import BATCH_PNG, TENSORBOARD
from report.rows import flatten
from utils import UserError, reference_name

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.tensorboard import SummaryWriter

    from engine.events import Epoch, Step
    from engine.state import Row
    from params import Params


class TensorBoard(Observer):
    """Events under tensorboard/: loss, learning rates and speed at each Step; metrics of both splits at each Epoch.

    Also the first batch of training images, the parameters of the run (HPARAMS), and what other observers look at
    inside the net: a scalar per layer and quantity.
    """

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        super().__init__(folder, params, start_step)
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError('observers: "tensorboard" needs its package: pip install tensorboard, or leave it out')
        self._writer: SummaryWriter | None = None
        self._has_begun = False
        self._has_failed = False

    @property
    def writer(self) -> SummaryWriter:
        """Made at the first event."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Events after start_step are of an attempt that ended before it committed them: they come again.
            purge = self.start_step + 1 if self.start_step else None
            threading.excepthook = _hide_writer_error
            self._writer = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=purge)
        return self._writer

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Errors of the disk name the folder: tensorboard's do not say what could not be written."""
        try:
            yield
        except OSError as error:
            self._has_failed = True
            reason = error.strerror or str(error)
            raise OSError(error.errno, reason, str(self.folder / TENSORBOARD)) from None

    def step(self, step: Step) -> None:
        with self._named_errors():
            self._add_step(step)

    def inside(self, look: Inside) -> None:
        scalars = {}
        for name, output in look.activations.items():
            values = {key: value for key, value in vars(output).items() if value is not None}
            scalars |= {f"activations/{name}/{key}": value for key, value in values.items()}
        if "gradients" in self.params.observers:
            scalars |= {f"gradients/{name}": gradient.norm().item() for name, gradient in look.gradients.items()}
        if "updates" in self.params.observers:
            ratios = {name: (update.norm() / look.weights[name].norm()).item() for name, update in look.updates.items()}
            scalars |= {f"updates/{name}": ratio for name, ratio in ratios.items() if math.isfinite(ratio)}
        with self._named_errors():
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, look.step)
            if "histograms" in self.params.observers:
                self._add_histograms(look)
            if "graph" in self.params.observers and look.net is not None and look.images is not None:
                add_graph(self.writer, look.net, look.images[:1])

    def _add_histograms(self, look: Inside) -> None:
        for group, tensors in (("weights", look.weights), ("updates", look.updates)):
            for name, tensor in tensors.items():
                if bool(tensor.isfinite().all()):
                    self.writer.add_histogram(f"{group}/{name}", tensor.float().cpu(), look.step)

    def _add_step(self, step: Step) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._begin()
        self.writer.add_scalar("train/loss", step.loss, step.step)
        rates = {f"learning_rate/group_{n}": rate for n, rate in enumerate(step.learning_rate, start=1)}
        if len(set(step.learning_rate)) == 1:
            rates = {"learning_rate": step.learning_rate[0]}
        for name, rate in rates.items():
            self.writer.add_scalar(name, rate, step.step)
        self.writer.add_scalar("images_per_second", step.images_per_second, step.step)

    def _begin(self) -> None:
        """What is shown once: the parameters, and the batch sheet that the run has drawn."""
        from torch.utils.tensorboard.summary import hparams

        shown = dict.fromkeys(["val/loss", f"val/{reference_name(self.params.best_metric)}"], 0.0)
        summaries = hparams(flat_hparams(self.params.resolved()), shown)
        if file := self.writer.file_writer:
            for summary in summaries:
                file.add_summary(summary)
        sheet = self.folder / BATCH_PNG
        if self.start_step == 0 and sheet.is_file():
            self.writer.add_image("batch_train", np.asarray(Image.open(sheet).convert("RGB")), 0, dataformats="HWC")

    def epoch(self, epoch: Epoch, history: list[Row]) -> None:
        with self._named_errors():
            for key, value in epoch.row.items():
                split, _, name = key.partition("_")
                if split in ("train", "val") and key != "train_loss" and value is not None:
                    self.writer.add_scalar(f"{split}/{name}", value, epoch.step)
            self.writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with contextlib.suppress(OSError) if self._has_failed else self._named_errors():  # it is said once
                writer.close()


class Histograms(Observer):
    """Histograms of weights and updates, for TensorBoard, which writes them."""

    wants: Set[str] = frozenset({"weights", "updates"})

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        super().__init__(folder, params, start_step)
        check_tensorboard(params, "histograms")


class Graph(Observer):
    """The graph of the net, once, for TensorBoard, which writes it."""

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        super().__init__(folder, params, start_step)
        check_tensorboard(params, "graph")
        self.wants: Set[str] = frozenset({"net"}) if start_step == 0 else frozenset()

    def inside(self, look: Inside) -> None:
        self.wants = frozenset()


def check_tensorboard(params: Params, name: str) -> None:
    """UserError when `name` has nobody to write what it looks at."""
    if "tensorboard" not in params.observers:
        raise UserError(f'observers: "{name}" is shown in TensorBoard: add "tensorboard"')


def add_graph(writer: SummaryWriter, net: nn.Module, images: Tensor) -> None:
    """Trace `net` for `images`, and show its graph. A net that cannot be traced is left out, with a line in the log."""
    try:
        with warnings.catch_warnings(), torch.random.fork_rng([images.device] if images.is_cuda else []):
            warnings.simplefilter("ignore")
            writer.add_graph(net, images)
    except (RuntimeError, TypeError, ValueError) as error:
        logging.getLogger("train").info("graph: the net cannot be traced: %s", str(error).strip().splitlines()[0][:120])


def flat_hparams(values: dict[str, object]) -> dict[str, str | float | bool]:
    """The parameters as TensorBoard takes them: numbers, words and truth values by dotted name; lists as JSON."""
    flat = flatten(values)
    plain = {key: value if isinstance(value, str | int | float) else json.dumps(value) for key, value in flat.items()}
    return {key: value for key, value in plain.items() if not (isinstance(value, float) and not math.isfinite(value))}


def _hide_writer_error(args: threading.ExceptHookArgs) -> None:
    """Print no traceback for tensorboard's writing thread on a full disk: the next event raises its error again."""
    if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(args)
