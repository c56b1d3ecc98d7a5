"""Everything of a run that must survive an interruption, and how it is saved and restored."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.ema import Ema
from engine.measure import add_sums

Row = dict[str, Any]  # of the history: column -> number, None where it is not defined, or a list of learning rates
SavedState = dict[str, Any]  # State.state_dict(): tensors and built-in types
Shard = dict[str, Any]  # what differs between ranks

PLAIN = (
    "num_epochs",
    "epoch",
    "step",
    "epoch_step",
    "phase",
    "eval_batch",
    "seconds",
    "train_row",
    "history",
    "extensions",
)
SUMS = ("sums", "recent")  # dicts of tensors that are added up; each rank has its own
LISTS = ("logits", "labels")  # lists of tensors; each rank has its own


@dataclass
class State:
    """Everything that must survive an interruption: tensors and built-in types, and nothing anywhere else."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None
    scaler: "torch.amp.GradScaler | None" = None
    epoch: int = 0  # number of finished epochs
    step: int = 0  # number of optimizer steps taken
    epoch_step: int = 0  # the step at which the running epoch began
    phase: str = "train"  # or "eval"
    eval_batch: int = 0  # number of evaluation batches done in this phase
    seconds: float = 0.0  # spent in this epoch
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the running phase, over images, on the device
    recent: dict[str, Tensor] = field(default_factory=dict)  # the same since the last Step
    logits: list[Tensor] = field(default_factory=list)  # of the running evaluation, for metrics over a whole split
    labels: list[Tensor] = field(default_factory=list)
    train_row: Row = field(default_factory=dict)  # the training half of the next history row
    history: list[Row] = field(default_factory=list)
    num_epochs: float = 0.0  # how far this run was asked to go, extensions included
    extensions: list[list[int]] = field(default_factory=list)  # see schedule.new_extension

    @property
    def eval_net(self) -> nn.Module:
        """The weights that are evaluated and exported: the average when there is one."""
        return self.ema.module if self.ema else self.net

    @property
    def recent_history(self) -> list[Row]:
        """The rows that early stopping looks at: those of the running extension, or of the run."""
        start = self.extensions[-1][0] if self.extensions else 0
        return [row for row in self.history if row["step"] > start]

    def shard(self) -> Shard:
        """The part that differs between ranks."""
        return {name: getattr(self, name) for name in (*SUMS, *LISTS)}

    def state_dict(self, shards: list[Shard] | None = None) -> SavedState:
        """All of it as tensors and built-in types. `shards`: of every rank, when there are several."""
        saved: SavedState = {name: getattr(self, name) for name in PLAIN}
        saved["shards"] = shards or [self.shard()]
        saved["net"] = self.net.state_dict()
        saved["optimizer"] = self.optimizer.state_dict()
        saved["ema"] = self.ema.module.state_dict() if self.ema else None
        saved["scaler"] = self.scaler.state_dict() if self.scaler else None
        return saved

    def load_state_dict(self, saved: SavedState, rank: int = 0, num_ranks: int = 1) -> None:
        """Load a state_dict. If it was saved by a different number of ranks, its shards are dealt out in turn."""
        for name in PLAIN:
            setattr(self, name, saved[name])
        self._load_shards(saved["shards"][rank::num_ranks])
        self.net.load_state_dict(saved["net"])
        if self.ema:
            self.ema.module.load_state_dict(saved["ema"])
        if self.scaler:
            self.scaler.load_state_dict(saved["scaler"])
        # The buffers are the saved ones; rates, decay, betas are those of today's parameters, which may have changed.
        options = [{key: group[key] for key in group.keys() - KEPT} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(saved["optimizer"])
        for group, given in zip(self.optimizer.param_groups, options, strict=True):
            group.update(given)
        restore_strides(self.optimizer)

    def _load_shards(self, shards: list[Shard]) -> None:
        """Sums of several shards are added, lists joined; both go to the device of the net."""
        device = next(self.net.parameters()).device
        for name in SUMS:
            total: dict[str, Tensor] = {}
            for shard in shards:
                add_sums(total, {key: value.to(device) for key, value in shard[name].items()})
            setattr(self, name, total)
        for name in LISTS:
            setattr(self, name, [value.to(device) for shard in shards for value in shard[name]])


KEPT = {"params", "lr"}  # of an optimizer's group, when a state is loaded; lr is set at each step


def restore_strides(optimizer: torch.optim.Optimizer) -> None:
    """Give every buffer the strides of its parameter: fused SGD and AdamW give silently wrong results with others."""
    for parameter, buffers in optimizer.state.items():
        for name, value in buffers.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                buffers[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                assert buffers[name].stride() == parameter.stride()
