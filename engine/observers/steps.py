"""What each Step says, and what the machine does meanwhile, as tables under monitors/."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.observers.base import Observer
from engine.observers.table import Table
from include import MONITORS

if TYPE_CHECKING:
    from engine.events import Step
    from params import Params

MEBI = 2**20
STATM = Path("/proc/self/statm")  # of Linux: sizes of this process, in pages


class CsvSteps(Observer):
    """monitors/steps.csv: loss, learning rates, metrics and speed every `save_summary_steps` steps."""

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        super().__init__(folder, params, start_step)
        self.table = Table(self.folder / MONITORS / "steps.csv", start_step)

    def step(self, step: Step) -> None:
        rates = step.learning_rate
        names = ["learning_rate"] if len(set(rates)) == 1 else [f"learning_rate_{n}" for n, _ in enumerate(rates, 1)]
        row = {"step": step.step, "epoch": step.epoch, "loss": step.loss, **dict(zip(names, rates, strict=False))}
        row |= {name: value for name, value in step.values.items() if name != "loss"}
        self.table.add([row | {"images_per_second": step.images_per_second}])


class System(Observer):
    """monitors/system.csv: images per second, the share of time spent waiting for data, and memory in MiB.

    memory: resident, of this process and not of its data workers; peak_memory: the most so far; device_memory: the most
    that torch had allocated on the GPU.
    """

    def __init__(self, folder: Path, params: Params, start_step: int = 0):
        super().__init__(folder, params, start_step)
        self.table = Table(self.folder / MONITORS / "system.csv", start_step)

    def step(self, step: Step) -> None:
        device = torch.cuda.max_memory_allocated() / MEBI if torch.cuda.is_initialized() else None
        row = {
            "step": step.step,
            "epoch": step.epoch,
            "images_per_second": step.images_per_second,
            "waiting": step.waiting,
            "memory": resident_memory(),
            "peak_memory": peak_memory(),
            "device_memory": device,
        }
        self.table.add([row])


def resident_memory() -> float | None:
    """Memory that this process holds now, in MiB; None where the system does not say."""
    try:
        pages = int(STATM.read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / MEBI


def peak_memory() -> float:
    """The most memory that this process held so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBI if sys.platform == "darwin" else peak / 1024
