"""Observers that an experiment folder carries ("watch.py:Stamp") so that a benchmark can see train.py from inside.

They do not change the training; times are from the clock that all processes of a machine share.
"""

import json
import os
import time

from torch.optim.optimizer import register_optimizer_step_post_hook

from engine.observers import Observer


class Stamp(Observer):
    """stamps.jsonl in the experiment folder: when the first optimizer step was done, and each epoch recorded."""

    def __init__(self, folder, params, start_step=0):
        super().__init__(folder, params, start_step)
        self.hook = register_optimizer_step_post_hook(self.first_step)

    def stamp(self, event: str, **values: float) -> None:
        with open(self.folder / "stamps.jsonl", "a") as file:
            file.write(json.dumps({"event": event, "at": time.monotonic()} | values) + "\n")

    def first_step(self, *_) -> None:
        self.hook.remove()
        self.stamp("first_step")

    def epoch(self, epoch, history) -> None:
        row = epoch.row
        self.stamp("epoch", train_loss=row["train_loss"], val_loss=row["val_loss"], val_accuracy=row["val_accuracy"])


class Stop(Observer):
    """Ends the process right after the first optimizer step, with exit code 0."""

    def __init__(self, folder, params, start_step=0):
        super().__init__(folder, params, start_step)
        register_optimizer_step_post_hook(lambda *_: os._exit(0))
