"""The training loop. It learns and measures; it opens no file and prints nothing.

`fit(run, state)` is a generator: it yields a Step when one is due and an Epoch after each evaluation,
and waits. Whoever iterates it does the saving, the plotting and the stopping. It may be left at any
yield: `state` then holds everything that is needed to go on to the same bits.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from engine.distributed import World
from engine.ema import Ema
from engine.protocols import Batch, Loader, Metric
from engine.schedule import Schedule, is_time, plateau_factor
from engine.sums import add_sums, measure_images, read_means, sum_per_image
from folder.history import best_row, training_column, validation_column
from params import Params
from utils import key64, reference_name


class NonFiniteLoss(Exception):
    """The loss or the weights became NaN or infinite. `epoch`, `step`: the batch where, both from 0, if known."""

    def __init__(self, message: str, epoch: int | None = None, step: int | None = None):
        super().__init__(message)
        self.epoch, self.step = epoch, step


@dataclass
class Run:
    """What a run is made of: built anew from params.json at every start, the same each time."""

    params: Params
    net: nn.Module
    optimizer: torch.optim.Optimizer
    loss_fn: Callable[[Tensor, Tensor], Tensor]  # (B, K) logits, (B,) or (B, K) labels -> (B,)
    metrics: Mapping[str, Metric]
    train_loader: Loader
    valid_loader: Loader
    schedule: Schedule
    total_steps: int
    autocast: Callable[[], AbstractContextManager[Any]]
    forward: Any  # images -> logits: the net, compiled or wrapped for several processes
    world: World = World()
    before_epoch: Callable[[int], None] = lambda epoch: None  # after net.train(); e.g. freezes layer groups
    average_views: Callable[[nn.Module, Tensor], Tensor] = lambda net, images: net(images)  # of images evaluated
    wants_control: Callable[[], bool] = lambda: False  # a signal came, or a checkpoint is due
    weights_report: str = ""  # one line about the weights that the net started from

    @property
    def minimized(self) -> list[str]:
        """The metrics of which less is better."""
        return sorted(name for name, metric in self.metrics.items() if metric.minimize)

    @property
    def best_metric(self) -> str:
        """The name in the history: "file.py:Name" is Name there."""
        return reference_name(self.params.best_metric)


@dataclass
class State:
    """Everything that must survive an interruption: tensors and built-in types, and nothing anywhere else."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None
    scaler: "torch.amp.GradScaler | None" = None
    epoch: int = 0  # epochs finished
    step: int = 0  # optimizer steps taken
    epoch_step: int = 0  # the step at which the running epoch began
    phase: str = "train"  # or "eval"
    eval_batch: int = 0  # evaluation batches done in this phase
    seconds: float = 0.0  # spent in this epoch
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the running phase, per example, on the device
    recent: dict[str, Tensor] = field(default_factory=dict)  # the same since the last Step
    logits: list[Tensor] = field(default_factory=list)  # of the running evaluation, for metrics over a whole split
    labels: list[Tensor] = field(default_factory=list)
    train_row: dict[str, Any] = field(default_factory=dict)  # the training half of the next history row
    history: list[dict[str, Any]] = field(default_factory=list)
    num_epochs: float = 0.0  # how far this run was asked to go, extensions included
    extensions: list[list[int]] = field(default_factory=list)  # [start, end) steps of each extension

    _PLAIN = (
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
    _SHARED_OUT = ("sums", "recent", "logits", "labels")  # each of several ranks has its own

    @property
    def eval_net(self) -> nn.Module:
        """The weights that are evaluated and exported: the average when there is one."""
        return self.ema.module if self.ema else self.net

    def shard(self) -> dict[str, Any]:
        """What each of several ranks has for itself."""
        return {name: getattr(self, name) for name in self._SHARED_OUT}

    def state_dict(self, shards: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """All of it as tensors and built-in types. `shards`: of every rank, when there are several."""
        state: dict[str, Any] = {name: getattr(self, name) for name in self._PLAIN}
        state["shards"] = shards or [self.shard()]
        state |= {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        state["ema"] = self.ema.module.state_dict() if self.ema else None
        state["scaler"] = self.scaler.state_dict() if self.scaler else None
        return state

    def load_state_dict(self, state: dict[str, Any], rank: int = 0, world: int = 1) -> None:
        """Take up a state_dict. With another number of ranks than it had, the shards are dealt out in turn."""
        device = next(self.net.parameters()).device
        for name in self._PLAIN:
            setattr(self, name, state[name])
        for name in self._SHARED_OUT:
            setattr(self, name, type(getattr(self, name))())
        for shard in state["shards"][rank::world]:
            for name in ("sums", "recent"):
                add_sums(getattr(self, name), {key: value.to(device) for key, value in shard[name].items()})
            for name in ("logits", "labels"):
                getattr(self, name).extend(value.to(device) for value in shard[name])
        self.net.load_state_dict(state["net"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        self.optimizer.load_state_dict(state["optimizer"])
        _restride(self.optimizer)

    @property
    def recent_history(self) -> list[dict[str, Any]]:
        """The rows that early stopping looks at: those of the running extension, or of the run."""
        start = self.extensions[-1][0] if self.extensions else 0
        return [row for row in self.history if row["step"] > start]


def _restride(optimizer: torch.optim.Optimizer) -> None:
    """Give every buffer its parameter's strides: fused SGD and AdamW are silently wrong with other ones."""
    for parameter, buffers in optimizer.state.items():
        for name, value in buffers.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                buffers[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                assert buffers[name].stride() == parameter.stride()


@dataclass(frozen=True)
class Step:
    """Where training stands, and the means since the Step before. `due`: False when only control was wanted."""

    epoch: int
    step: int
    learning_rate: list[float]
    loss: float
    values: dict[str, float]
    images_per_second: float
    due: bool = True


@dataclass(frozen=True)
class Epoch:
    """A finished epoch: its row of the history, and the best row so far, None when no value was ever finite."""

    epoch: int
    step: int
    row: dict[str, Any]
    best: dict[str, Any] | None

    @property
    def is_best(self) -> bool:
        return self.best is self.row


@dataclass(frozen=True)
class Progress:
    """Evaluation gives way: control was wanted between two of its batches."""

    epoch: int
    step: int


Event = Step | Epoch | Progress


def fit(run: Run, state: State) -> Iterator[Event]:
    """Train from where `state` stands to `run.total_steps`. Raises NonFiniteLoss."""
    while state.step < run.total_steps or state.step > state.epoch_step:  # to go, or an epoch begun and not closed
        if state.phase == "train":
            yield from train_epoch(run, state)
            close_training(run, state)
        yield from evaluate(run, state)
        yield close_epoch(run, state)


def train_epoch(run: Run, state: State) -> Iterator[Event]:
    """The rest of this epoch, or less when `total_steps` comes first."""
    loader, first_step = run.train_loader, state.epoch_step
    run.net.train()
    run.before_epoch(state.epoch)
    batches = iter(loader.batches(state.epoch, state.step - first_step))
    last_step = min(first_step + loader.num_batches, run.total_steps)
    begun, seen = time.perf_counter(), 0
    while state.step < last_step:
        set_rates(run, state)
        num_images = loader.step_size(state.step - first_step)
        sums = train_step(run, state, islice(batches, loader.accumulate), num_images)
        add_sums(state.sums, sums)
        add_sums(state.recent, sums)
        finite = state.recent["loss"].isfinite().to(sums["loss"].dtype)  # and stays 0 from the first bad step on
        add_sums(state.recent, {"steps": torch.ones_like(finite), "finite_steps": finite})
        state.step += 1
        seen += num_images
        is_due = is_time(state.step, run.params.save_summary_steps, last_step)
        if run.wants_control() or is_due:
            event = make_step(run, state, is_due)
            elapsed = time.perf_counter() - begun
            state.seconds += elapsed
            yield event(seen / elapsed)
            begun, seen = time.perf_counter(), 0


def train_step(run: Run, state: State, batches: Iterable[Batch], num_images: int) -> dict[str, Tensor]:
    """One optimizer step over all its micro-batches. Returns sums per example, on the device."""
    seed_device(next(run.net.parameters()).device, key64(run.params.seed, "step", state.step, run.world.rank))
    scaler = state.scaler
    total: dict[str, Tensor] = {}
    for number, (images, labels, _, weights) in enumerate(batches, start=1):  # (B, 3, H, W), (B,) or (B, K), -, (B,)
        with run.world.synced(run.forward, is_last=number == run.train_loader.accumulate):
            with run.autocast():
                logits = run.forward(images)  # (B, K)
            losses = run.loss_fn(logits.float(), labels)  # (B,)
            loss = (losses * weights).sum() * (run.world.size / num_images)
            (scaler.scale(loss) if scaler else loss).backward()
        with torch.no_grad():
            per_image = measure_images(run.metrics, logits, labels)
            add_sums(total, sum_per_image({**per_image, "loss": losses.detach()}, weights))
    if scaler:
        scaler.unscale_(run.optimizer)
    if run.params.grad_clip:
        nn.utils.clip_grad_norm_(run.net.parameters(), run.params.grad_clip)
    scaler.step(run.optimizer) if scaler else run.optimizer.step()
    if scaler:
        scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    if state.ema:
        state.ema.update(run.net, state.step)
    return total


def seed_device(device: torch.device, seed: int) -> None:
    """For dropout and the like. torch.manual_seed would keep a stack trace of each call for backends not in use."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(seed)


def check_finite(state: State) -> None:
    """NonFiniteLoss when a weight or a statistic of the net is NaN or infinite: such a state must not be kept."""
    tensors = {name: value for name, value in state.net.state_dict().items() if value.is_floating_point()}
    if tensors and not bool(torch.stack([value.isfinite().all() for value in tensors.values()]).all()):
        name = next(name for name, value in tensors.items() if not value.isfinite().all())
        raise NonFiniteLoss(
            f"{name} of the net is NaN or infinite after step {state.step}; the last good state is kept. "
            "Try a lower learning_rate, or grad_clip"
        )


def set_rates(run: Run, state: State) -> None:
    """The learning rate and momentum of this step: functions of the step and of the history alone."""
    factor = run.schedule.multiplier(state.step)
    if run.schedule.plateau:
        factor *= plateau_factor([row[validation_column("loss")] for row in state.history])
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
        if run.schedule.momentum:
            group["momentum"] = run.schedule.momentum(state.step)


def learning_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The current rate of each layer group, earliest first."""
    rates = {group["layer_group"]: group["lr"] for group in optimizer.param_groups}
    return [rates[key] for key in sorted(rates)]


def make_step(run: Run, state: State, is_due: bool) -> Callable[[float], Step]:
    """Means since the last Step. One host sync, and the finite check of this interval."""
    recent = {name: value for name, value in state.recent.items() if name not in ("steps", "finite_steps")}
    means = read_means(recent, run.world.all_sum)
    if not math.isfinite(means["loss"]):
        step = state.step - int(state.recent["steps"] - state.recent["finite_steps"])
        raise NonFiniteLoss(
            f"the training loss is {means['loss']} in epoch {state.epoch + 1}, at step {step + 1}, at learning rate "
            f"{max(learning_rates(run.optimizer)):g}; the last good state is kept. "
            "Try a lower learning_rate, or grad_clip",
            state.epoch,
            step - state.epoch_step,
        )
    if is_due:
        state.recent = {}
    epoch, step, rates = state.epoch + 1, state.step, learning_rates(run.optimizer)
    return lambda speed: Step(epoch, step, rates, means["loss"], means, speed, is_due)


def close_training(run: Run, state: State) -> None:
    """End of the training phase: its means are kept, and evaluation may start, of one net on all ranks."""
    run.world.share([*state.net.buffers(), *(state.ema.module.buffers() if state.ema else ())])
    rates = learning_rates(run.optimizer)
    means = read_means(state.sums, run.world.all_sum)
    steps = state.step - state.epoch_step
    state.train_row = {
        "epoch": state.epoch + 1,
        "step": state.step,
        "learning_rate": rates[0] if len(set(rates)) == 1 else rates,
        **{training_column(name): value for name, value in _loss_first(means).items()},
        "seconds": state.seconds,
        "images_per_second": sum(map(run.train_loader.step_size, range(steps))) / max(state.seconds, 1e-9),
    }
    state.sums, state.recent, state.phase, state.eval_batch = {}, {}, "eval", 0


@torch.no_grad()
def evaluate(run: Run, state: State) -> Iterator[Progress]:
    """The rest of the evaluation of the validation split; gives way between batches when control is wanted."""
    begun = time.perf_counter()
    net = state.eval_net.eval()
    whole = any(not metric.per_image for metric in run.metrics.values())
    for images, labels, _, weights in run.valid_loader.batches(0, state.eval_batch):
        with run.autocast():
            logits = run.average_views(net, images)  # (B, K)
        per_image = measure_images(run.metrics, logits, labels)
        add_sums(state.sums, sum_per_image(per_image, weights))
        if whole:
            state.logits.append(logits[weights > 0].float())
            state.labels.append(labels[weights > 0])
        state.eval_batch += 1
        if run.wants_control():
            yield Progress(state.epoch + 1, state.step)
    state.seconds += time.perf_counter() - begun


def close_epoch(run: Run, state: State) -> Epoch:
    """Append the row of the epoch that has just been evaluated."""
    values = read_means(state.sums, run.world.all_sum)
    for name, metric in run.metrics.items():
        if not metric.per_image:
            values[name] = float(metric(run.world.cat(state.logits), run.world.cat(state.labels)))
    row = dict(state.train_row)
    timing = {name: row.pop(name) for name in ("seconds", "images_per_second")}
    if not math.isfinite(values["loss"]):
        raise NonFiniteLoss(
            f"the validation loss of epoch {state.epoch + 1} is {values['loss']}; the last good state is kept"
        )
    row |= {
        validation_column(name): value if math.isfinite(value) else None for name, value in _loss_first(values).items()
    }
    row |= timing | {"seconds": state.seconds}
    state.history = [*state.history, row]
    state.epoch, state.epoch_step = state.epoch + 1, state.step
    state.phase, state.seconds, state.sums, state.train_row = "train", 0.0, {}, {}
    state.logits, state.labels = [], []
    best = best_row(state.history, run.best_metric, run.minimized)
    return Epoch(state.epoch, state.step, row, best)


def _loss_first(values: dict[str, float]) -> dict[str, float]:
    return {"loss": values["loss"]} | values
