"""The training loop. It trains and evaluates; it opens no file and prints nothing.

`fit(run, state)` is a generator: it yields a Step when one is due and an Epoch after each evaluation, and waits.
The caller's loop does the saving, the plotting and the stopping. It may be left at any yield: `state` then holds
everything that is needed to continue bit for bit.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from engine.distributed import World
from engine.events import Epoch, EvalStep, Event, NonFiniteLoss, Step
from engine.measure import (
    Autocast,
    add_sums,
    compute_outputs,
    has_split_metric,
    measure_images,
    measure_split,
    read_means,
    sum_per_image,
)
from engine.protocols import Batch, Loader, Metric, WeightsReport
from engine.schedule import Schedule, is_time, plateau_factor
from engine.state import State
from folder.history import best_row, training_column, validation_column
from params import Params
from utils import key64, reference_name


def _keep_all_trainable(epoch: int) -> None:
    """The default of Run.before_epoch: nothing is frozen or thawed."""


def _take_one_view(net: nn.Module, images: Tensor) -> Tensor:
    """The default of Run.average_views: no test-time augmentation."""
    return net(images)


def _never() -> bool:
    """The default of Run.wants_control."""
    return False


@dataclass
class Run:
    """The parts of a run: built anew from params.json at every start, the same each time."""

    params: Params
    net: nn.Module
    optimizer: torch.optim.Optimizer
    loss_fn: Callable[[Tensor, Tensor], Tensor]  # (B, K) logits, (B,) or (B, K) labels -> (B,)
    metrics: Mapping[str, Metric]
    train_loader: Loader
    valid_loader: Loader
    schedule: Schedule
    total_steps: int
    forward: nn.Module  # images -> logits: the net, or what compiles it or averages its gradients over processes
    autocast: Autocast = nullcontext
    world: World = World()
    before_epoch: Callable[[int], None] = _keep_all_trainable  # after net.train(); e.g. freezes layer groups
    average_views: Callable[[nn.Module, Tensor], Tensor] = _take_one_view  # (net, images to evaluate) -> logits
    wants_control: Callable[[], bool] = _never  # True when a signal came or a checkpoint is due
    weights_report: WeightsReport | None = None  # about the weights that the net started from

    @property
    def minimized(self) -> list[str]:
        """The metrics for which lower is better."""
        return sorted(name for name, metric in self.metrics.items() if metric.minimize)

    @property
    def best_metric(self) -> str:
        """Its name in the history: "file.py:Name" is Name there."""
        return reference_name(self.params.best_metric)


# --- an epoch -----------------------------------------------------------------------------------------


def fit(run: Run, state: State) -> Iterator[Event]:
    """Train from where `state` stands to `run.total_steps`. Raises NonFiniteLoss."""
    # Go on while steps remain, or while an epoch still needs its evaluation.
    while state.step < run.total_steps or state.step > state.epoch_step:
        # Train the rest of the epoch, unless the run was interrupted in the evaluation that follows it.
        if state.phase == "train":
            yield from train_epoch(run, state)
            close_training(run, state)
        # Evaluate the validation split, and append the epoch to the history.
        yield from validate(run, state)
        yield close_epoch(run, state)


def train_epoch(run: Run, state: State) -> Iterator[Step]:
    """The rest of this epoch, or less when `total_steps` comes first."""
    loader = run.train_loader
    first_step = state.epoch_step
    last_step = min(first_step + loader.num_batches, run.total_steps)
    run.net.train()
    run.before_epoch(state.epoch)
    batches = TimedBatches(loader.batches(state.epoch, state.step - first_step))
    begun = time.perf_counter()
    num_seen = 0
    while state.step < last_step:
        # Take one optimizer step at the learning rate and momentum of this step.
        set_rates(run, state)
        num_images = loader.step_size(state.step - first_step)
        sums = train_step(run, state, islice(batches, loader.accumulate), num_images)
        # Update the counters in the state and the sums on the device.
        count_step(state, sums)
        num_seen += num_images
        # Yield when a Step is due, or when the caller wants control. Reading the means waits for the device.
        is_due = is_time(state.step, run.params.save_summary_steps, last_step)
        if run.wants_control() or is_due:
            means = read_recent(run, state, is_due)
            elapsed = time.perf_counter() - begun
            state.seconds += elapsed
            waiting = batches.seconds / elapsed
            yield make_step(run, state, means, num_seen / elapsed, is_due, waiting)
            batches.seconds = 0.0
            begun = time.perf_counter()
            num_seen = 0


class TimedBatches:
    """The batches of a loader, and the seconds that were spent waiting for them."""

    def __init__(self, batches: Iterable[Batch]):
        self.batches = iter(batches)
        self.seconds = 0.0

    def __iter__(self) -> "TimedBatches":
        return self

    def __next__(self) -> Batch:
        begun = time.monotonic()
        try:
            return next(self.batches)
        finally:
            self.seconds += time.monotonic() - begun


def close_training(run: Run, state: State) -> None:
    """End the training phase: keep its means, and let the evaluation begin."""
    # All ranks evaluate the same net: batch norm's statistics are those of rank 0.
    run.world.share([*state.net.buffers(), *(state.ema.module.buffers() if state.ema else ())])
    # Keep the training half of the history row.
    rates = learning_rates(run.optimizer)
    means = read_means(state.sums, run.world.all_sum)
    num_images = sum(map(run.train_loader.step_size, range(state.step - state.epoch_step)))
    state.train_row = {
        "epoch": state.epoch + 1,
        "step": state.step,
        "learning_rate": rates[0] if len(set(rates)) == 1 else rates,
        **{training_column(name): value for name, value in _loss_first(means).items()},
        "seconds": state.seconds,
        "images_per_second": num_images / max(state.seconds, 1e-9),
    }
    # Begin the evaluation phase with no sums.
    state.sums = {}
    state.recent = {}
    state.phase = "eval"
    state.eval_batch = 0


@torch.no_grad()
def validate(run: Run, state: State) -> Iterator[EvalStep]:
    """The rest of the evaluation of the validation split; gives way between batches when control is wanted."""
    begun = time.perf_counter()
    forward = partial(run.average_views, state.eval_net.eval())
    keeps_logits = has_split_metric(run.metrics)
    for output in compute_outputs(forward, run.valid_loader, state.eval_batch, run.autocast):
        # Add up the metrics that have one value per image.
        values = measure_images(run.metrics, output.logits, output.labels)
        add_sums(state.sums, sum_per_image(values, output.weights))
        # Keep the logits, without padding, for the metrics that need all of them.
        if keeps_logits:
            counts = output.weights > 0
            state.logits.append(output.logits[counts].float())
            state.labels.append(output.labels[counts])
        # Give way when the caller wants control.
        state.eval_batch += 1
        if run.wants_control():
            yield EvalStep(state.epoch + 1, state.step)
    state.seconds += time.perf_counter() - begun


def close_epoch(run: Run, state: State) -> Epoch:
    """Append the row of the epoch that has just been evaluated, and begin the next one."""
    # Measure the validation split over all ranks.
    values = read_means(state.sums, run.world.all_sum)
    if has_split_metric(run.metrics):
        values |= measure_split(run.metrics, run.world.cat(state.logits), run.world.cat(state.labels))
    if not math.isfinite(values["loss"]):
        raise NonFiniteLoss(
            f"the validation loss of epoch {state.epoch + 1} is {values['loss']}; the last good state is kept"
        )
    # Join both halves of the row; a metric that is not defined is None, and the clock's columns come last.
    row = dict(state.train_row)
    images_per_second = row.pop("images_per_second")
    del row["seconds"]
    for name, value in _loss_first(values).items():
        row[validation_column(name)] = value if math.isfinite(value) else None
    row |= {"seconds": state.seconds, "images_per_second": images_per_second}
    state.history = [*state.history, row]
    # Reset what belongs to this epoch, and begin the next one.
    state.epoch += 1
    state.epoch_step = state.step
    state.phase = "train"
    state.seconds = 0.0
    state.sums = {}
    state.train_row = {}
    state.logits = []
    state.labels = []
    return Epoch(state.epoch, state.step, row, best_row(state.history, run.best_metric, run.minimized))


def _loss_first(values: dict[str, float]) -> dict[str, float]:
    return {"loss": values["loss"]} | values


# --- a step -------------------------------------------------------------------------------------------


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


def train_step(run: Run, state: State, batches: Iterable[Batch], num_images: int) -> dict[str, Tensor]:
    """One optimizer step over all its micro-batches. Returns sums over images, on the device."""
    # Dropout is a function of the seed, the step and the rank.
    seed_device(next(run.net.parameters()).device, key64(run.params.seed, "step", state.step, run.world.rank))
    total: dict[str, Tensor] = {}
    for number, (images, labels, _, weights) in enumerate(batches, start=1):
        # Several processes average their gradients in the last micro-batch alone.
        with run.world.synced(run.forward, is_last=number == run.train_loader.accumulate):
            with run.autocast():
                logits = run.forward(images)  # (B, K)
            losses = run.loss_fn(logits.float(), labels)  # (B,)
            # The mean over the images of the whole step; averaging over processes divides by their number again.
            loss = (losses * weights).sum() * (run.world.size / num_images)
            (state.scaler.scale(loss) if state.scaler else loss).backward()
        # Add up the loss and the metrics. Nothing is read here: the host waits for no device.
        with torch.no_grad():
            values = {**measure_images(run.metrics, logits, labels), "loss": losses.detach()}
            add_sums(total, sum_per_image(values, weights))
    # Update the weights, and their average.
    update_weights(run, state)
    if state.ema:
        state.ema.update(run.net, state.step)
    return total


def update_weights(run: Run, state: State) -> None:
    """Step with the gradients, clipped if asked for, and let them go. The scaler skips a step that overflowed."""
    scaler = state.scaler
    if scaler:
        scaler.unscale_(run.optimizer)
    if run.params.grad_clip:
        nn.utils.clip_grad_norm_(run.net.parameters(), run.params.grad_clip)
    if scaler:
        scaler.step(run.optimizer)
        scaler.update()
    else:
        run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)


def count_step(state: State, sums: Mapping[str, Tensor]) -> None:
    """Add a step's sums to those of the epoch and to those since the last Step."""
    add_sums(state.sums, sums)
    add_sums(state.recent, sums)
    is_finite = state.recent["loss"].isfinite().to(sums["loss"].dtype)  # stays 0 from the first non-finite step on
    add_sums(state.recent, {"steps": torch.ones_like(is_finite), "finite_steps": is_finite})
    state.step += 1


def read_recent(run: Run, state: State, is_due: bool) -> dict[str, float]:
    """Means since the last Step. The host waits for the device here, and a loss that is not finite stops the run."""
    sums = {name: value for name, value in state.recent.items() if name not in ("steps", "finite_steps")}
    means = read_means(sums, run.world.all_sum)
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
    return means


def make_step(run: Run, state: State, means: dict[str, float], speed: float, is_due: bool, waiting: float) -> Step:
    """A Step event with the progress of the training. `speed`: in images per second."""
    rates = learning_rates(run.optimizer)
    return Step(state.epoch + 1, state.step, rates, means["loss"], means, speed, is_due, waiting)


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
