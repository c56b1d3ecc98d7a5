"""The loop may be left at any yield and goes on to the same bits: the test that guards `State`."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kit import make_dataset
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from engine.distributed import World
from engine.ema import Ema
from engine.events import Epoch, NonFiniteLoss, Step
from engine.loop import Run, check_finite, fit, learning_rates, set_rates, train_step
from engine.schedule import Schedule, make_schedule
from engine.state import State


class Loader:
    """A tiny loader of the seam: 44 images of 3x8x8, order a function of the epoch, soft labels when mixing."""

    def __init__(self, train: bool, accumulate: int = 1, mix: bool = False, scale: float = 1.0):
        generator = torch.Generator().manual_seed(7)
        self.images = torch.randn(44, 3, 8, 8, generator=generator) * scale
        self.labels = torch.randint(0, 4, (44,), generator=generator)
        self.train, self.accumulate, self.mix = train, accumulate, mix
        self.num_batches = 6

    def step_size(self, step):
        return 8 if step < 5 else 4

    def batches(self, epoch, start_step=0):
        order = torch.randperm(44, generator=torch.Generator().manual_seed(epoch)) if self.train else torch.arange(44)
        for step in range(start_step, 6):
            for part in order[step * 8 : step * 8 + 8].chunk(self.accumulate):
                labels = self.labels[part]
                if self.mix:
                    share = torch.rand(1, generator=torch.Generator().manual_seed(epoch * 100 + step))
                    labels = share * nn.functional.one_hot(labels, 4) + (1 - share) * nn.functional.one_hot(
                        labels.flip(0), 4
                    )
                yield self.images[part], labels, part, torch.ones(len(part))


def per_image(fn, minimize=False):
    fn = staticmethod(fn)
    return type("Metric", (), {"per_image": True, "minimize": minimize, "__call__": fn})()


def loss_of(logits, labels):
    return cross_entropy(logits.float(), labels, reduction="none")


def accuracy(logits, labels):
    return (logits.argmax(1) == (labels if labels.ndim == 1 else labels.argmax(1))).float()


@dataclass(frozen=True)
class Case:
    """What a small training is made of."""

    scheduler: str = "plateau"
    accumulate: int = 2
    mix: bool = True
    ema: float = 0.9
    optimizer: str = "sgd"
    channels_last: bool = True
    wants: Callable[[], bool] = lambda: True
    scale: float = 1.0


def make_small_net(channels_last):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(8, 4),
    )
    return net.to(memory_format=torch.channels_last) if channels_last else net


def make(**changes):
    """(run, state) of a small training that is a `Case` with these changes."""
    case = Case(**changes)
    net = make_small_net(case.channels_last)
    params = SimpleNamespace(
        seed=3,
        grad_clip=1.0,
        save_summary_steps=4,
        best_metric="accuracy",
        scheduler=case.scheduler,
        div_factor=25,
        pct_start=0.3,
        warmup=0.5,
        lr_schedule=None,
        optimizer=case.optimizer,
        momentum=0.9,
    )
    group = {"params": list(net.parameters()), "lr": 0.1, "initial_lr": 0.1, "layer_group": 0}
    kind = {
        "sgd": lambda: torch.optim.SGD([group], momentum=0.9, fused=True),
        "adamw": lambda: torch.optim.AdamW([group], fused=True),
    }
    state = State(net, kind[case.optimizer](), Ema(net, case.ema) if case.ema else None)
    whole = type(
        "Whole",
        (),
        {"per_image": False, "minimize": False, "__call__": staticmethod(lambda lo, la: accuracy(lo, la).mean())},
    )()
    metrics = {"loss": per_image(loss_of, minimize=True), "accuracy": per_image(accuracy), "whole": whole}
    run = Run(
        params=params,
        net=net,
        optimizer=state.optimizer,
        loss_fn=loss_of,
        metrics=metrics,
        forward=net,
        train_loader=Loader(True, case.accumulate, case.mix, case.scale),
        valid_loader=Loader(False),
        total_steps=20,
        schedule=make_schedule(params, 20, 6),
        autocast=contextlib.nullcontext,
        wants_control=case.wants,
    )
    return run, state


def serialised(state):
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    return buffer.getvalue()


def outcome(state):
    """Everything that must not depend on interruptions: tensors as bytes, history without seconds."""
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in state.history]
    tensors = [*state.net.state_dict().values(), *(state.ema.module.state_dict().values() if state.ema else ())]
    tensors += [v for s in state.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return [t.contiguous().numpy().tobytes() for t in tensors], rows, state.epoch, state.step


CASES = {
    "plateau, accumulation, mixup, ema, sgd": {},
    "one_cycle, adamw": {"scheduler": "one_cycle", "optimizer": "adamw", "accumulate": 1},
    "cosine, no ema, contiguous": {"scheduler": "cosine", "ema": 0, "mix": False, "channels_last": False},
}


@pytest.mark.parametrize("case", CASES)
def test_left_at_every_yield_it_goes_on_to_the_same_bits(case):
    run, state = make(**CASES[case])
    for _ in fit(run, state):
        pass
    expected = outcome(state)

    run, state = make(**CASES[case])
    kinds = set()
    while True:
        event = next(fit(run, state), None)  # one event, then everything is rebuilt from bytes
        if event is None:
            break
        kinds.add(type(event).__name__)
        saved = torch.load(io.BytesIO(serialised(state)), weights_only=True)
        run, state = make(**CASES[case])
        state.load_state_dict(saved)
    assert kinds == {"Step", "EvalStep", "Epoch"}
    assert outcome(state) == expected


def test_control_changes_nothing():
    outcomes = []
    for wants in (lambda: True, lambda: False):
        run, state = make(wants=wants)
        for _ in fit(run, state):
            pass
        outcomes.append(outcome(state))
    assert outcomes[0] == outcomes[1]


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    weights = []
    for accumulate in (1, 4):
        run, state = make(accumulate=accumulate, mix=False, ema=0)
        run.net[5].p = 0.0  # dropout draws per micro-batch
        run.net[1] = run.net[1].eval()  # batch norm sees micro-batches
        run.net.train = lambda mode=True, net=run.net: net
        next(fit(run, state))
        weights.append(run.net[0].weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)


def test_means_are_per_example():
    run, state = make(accumulate=1, mix=False, wants=lambda: False)
    epochs = [event for event in fit(run, state) if isinstance(event, Epoch)]
    with torch.no_grad():
        logits = state.ema.module.eval()(Loader(False).images)
    assert epochs[-1].row["val_accuracy"] == pytest.approx(
        accuracy(logits, Loader(False).labels).mean().item(), abs=1e-6
    )
    assert epochs[-1].row["val_loss"] == pytest.approx(loss_of(logits, Loader(False).labels).mean().item(), abs=1e-6)
    assert epochs[-1].row["val_whole"] == pytest.approx(epochs[-1].row["val_accuracy"])


def test_steps_are_due_when_asked_for_and_at_the_end_of_an_epoch():
    run, state = make(wants=lambda: False)
    steps = [event.step for event in fit(run, state) if isinstance(event, Step)]
    assert steps == [4, 6, 8, 12, 16, 18, 20]
    assert [row["epoch"] for row in state.history] == [1, 2, 3, 4]
    assert state.step == 20, "a fractional last epoch ends at total_steps"


def test_momentum_gets_its_parameters_strides():
    run, state = make()
    next(fit(run, state))
    saved = torch.load(io.BytesIO(serialised(state)), weights_only=True)
    for buffers in saved["optimizer"]["state"].values():
        buffers["momentum_buffer"] = buffers["momentum_buffer"].contiguous()
    run, state = make()
    state.load_state_dict(saved)
    for parameter, buffers in state.optimizer.state.items():
        assert buffers["momentum_buffer"].stride() == parameter.stride()


def test_before_epoch_is_called_in_train_mode_at_the_start_of_every_epoch():
    """And so it can put a batch norm into eval mode for the epoch: its statistics stay."""
    run, state = make(ema=None)
    epochs, norm = [], run.net[1]

    def freeze(epoch):
        epochs.append((epoch, norm.training))
        norm.eval()

    run.before_epoch = freeze
    for _ in fit(run, state):
        pass
    assert epochs == [(epoch, True) for epoch in range(4)]
    assert norm.running_mean.eq(0).all()
    assert norm.num_batches_tracked == 0


def test_a_loss_that_is_not_finite_stops_the_run():
    run, state = make(scale=float("inf"))
    with pytest.raises(NonFiniteLoss, match="epoch 1, at step 1"):
        list(fit(run, state))
    assert state.history == []


# --- against values that the loop does not compute itself ---------------------------------------------------------


def plain(total_steps=20, every=4, wants=lambda: False, **params):
    """A linear net without dropout, norm, average or mixing, under a constant rate: (run, state)."""
    run, state = make(scheduler="constant", accumulate=params.pop("accumulate", 1), mix=False, ema=0, wants=wants)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    group = {"params": list(net.parameters()), "lr": 0.1, "initial_lr": 0.1, "layer_group": 0}
    state = State(net, torch.optim.SGD([group], lr=0.1))
    run.net, run.forward, run.optimizer, run.total_steps = net, net, state.optimizer, total_steps
    run.schedule = make_schedule(SimpleNamespace(**{**vars(run.params), "warmup": 0}), total_steps, 6)
    vars(run.params).update({"save_summary_steps": every, "grad_clip": None, **params})
    return run, state


def by_hand(num_steps, clip=None):
    """Weights, and the loss of each step before it was taken, of gradient descent written out with autograd alone."""
    _, state = plain()
    weight, bias = (parameter.detach().clone() for parameter in state.net.parameters())
    losses = []
    for step in range(num_steps):
        order = torch.randperm(44, generator=torch.Generator().manual_seed(step // 6))
        part = order[step % 6 * 8 :][:8]
        weight.requires_grad_()
        bias.requires_grad_()
        loss = cross_entropy(Loader(True).images[part].flatten(1) @ weight.T + bias, Loader(True).labels[part])
        grads = torch.autograd.grad(loss, (weight, bias))
        norm = torch.cat([grad.flatten() for grad in grads]).norm()
        scale = min(1.0, clip / norm) if clip else 1.0
        weight, bias = (value.detach() - 0.1 * scale * grad for value, grad in zip((weight, bias), grads, strict=True))
        losses.append(loss.item())
    return weight, bias, losses


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_are_gradient_descent_on_the_mean_loss(clip, accumulate):
    run, state = plain(total_steps=9, grad_clip=clip, accumulate=accumulate)
    assert len(list(fit(run, state))) == 4 + 2
    weight, bias, losses = by_hand(9, clip)
    torch.testing.assert_close(run.net[1].weight, weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(run.net[1].bias, bias, rtol=1e-4, atol=1e-6)
    first, second = state.history
    assert first["train_loss"] == pytest.approx(np.average(losses[:6], weights=[8, 8, 8, 8, 8, 4]), rel=1e-5)
    assert second["train_loss"] == pytest.approx(np.mean(losses[6:]), rel=1e-5)
    with torch.no_grad():
        logits = Loader(False).images.flatten(1) @ weight.T + bias
    assert second["val_loss"] == pytest.approx(cross_entropy(logits, Loader(False).labels).item(), rel=1e-4)
    assert second["val_accuracy"] == (logits.argmax(1) == Loader(False).labels).double().mean().item()


def test_a_step_has_the_means_since_the_one_that_was_due():
    run, state = plain(wants=lambda: True)
    steps = [event for event in fit(run, state) if isinstance(event, Step)]
    assert [event.step for event in steps] == list(range(1, 21))
    assert [event.step for event in steps if event.due] == [4, 6, 8, 12, 16, 18, 20]
    assert [event.epoch for event in steps] == [1] * 6 + [2] * 6 + [3] * 6 + [4] * 2
    losses, sizes = by_hand(20)[2], [8, 8, 8, 8, 8, 4] * 4
    since = {1: 0, 4: 0, 5: 4, 6: 4, 7: 6, 8: 6, 11: 8, 18: 16, 19: 18, 20: 18}
    for step, start in since.items():
        expected = np.average(losses[start:step], weights=sizes[start:step])
        assert steps[step - 1].loss == pytest.approx(expected, rel=1e-4), step
        assert steps[step - 1].loss == steps[step - 1].values["loss"]
        assert steps[step - 1].learning_rate == [0.1]


def test_a_row_of_the_history():
    run, state = plain(total_steps=6)
    *_, epoch = fit(run, state)
    names = [f"{split}_{name}" for split in ("train", "val") for name in ("loss", "accuracy")]
    assert list(epoch.row) == ["epoch", "step", "learning_rate", *names, "val_whole", "seconds", "images_per_second"]
    assert (epoch.row["epoch"], epoch.row["step"], epoch.row["learning_rate"]) == (1, 6, 0.1)
    assert 0 < 44 / epoch.row["images_per_second"] < epoch.row["seconds"]
    assert epoch == Epoch(1, 6, state.history[0], state.history[0])
    assert epoch.is_best
    assert (state.epoch, state.epoch_step, state.phase, state.seconds, state.logits) == (1, 6, "train", 0.0, [])


def test_the_clock_counts_neither_waiting_nor_what_the_caller_does(monkeypatch):
    """Every look at the clock is a second; the caller takes a hundred at each event."""
    clock = {"now": 0.0}

    def tick():
        clock["now"] += 1
        return clock["now"]

    monkeypatch.setattr("engine.loop.time.perf_counter", tick)
    run, state = plain(total_steps=12)
    events = []
    for event in fit(run, state):
        events.append(event)
        clock["now"] += 100
    rows = [event.row for event in events if isinstance(event, Epoch)]
    assert [(row["images_per_second"], row["seconds"]) for row in rows] == [(22, 3), (22, 3)], "each epoch on its own"
    assert [event.images_per_second for event in events[:2]] == [32, 12]
    assert events[2].row["images_per_second"] == 22  # 44 images in two seconds
    assert events[2].row["seconds"] == 3  # and one second of evaluation


def test_a_metric_without_a_value_is_none_and_never_the_best():
    run, state = plain(total_steps=12)
    values = iter([float("nan"), 0.5])
    run.metrics["accuracy"] = type(run.metrics["whole"])()
    type(run.metrics["accuracy"]).__call__ = lambda self, logits, labels: next(values)
    del run.metrics["whole"]
    epochs = [event for event in fit(run, state) if isinstance(event, Epoch)]
    assert [epoch.row["val_accuracy"] for epoch in epochs] == [None, 0.5]
    assert [epoch.best for epoch in epochs] == [None, epochs[1].row]


def test_padding_counts_nowhere():
    """Images of weight 0 change neither the weights, nor the means, nor the metrics over a split."""

    class Padded(Loader):
        def batches(self, epoch, start_step=0):
            for images, labels, part, weights in super().batches(epoch, start_step):
                wrong = torch.full_like(images[:3], 7.0)
                zeros = torch.zeros(3)
                yield torch.cat([images, wrong]), torch.cat([labels, labels[:3]]), part, torch.cat([weights, zeros])

    rows = []
    for kind in (Loader, Padded):
        run, state = plain(total_steps=9)
        run.train_loader, run.valid_loader = kind(True), kind(False)
        list(fit(run, state))
        clocks = ("seconds", "images_per_second")
        rows.append([value for row in state.history for key, value in row.items() if key not in clocks])
    assert rows[1] == pytest.approx(rows[0], rel=1e-5)


def test_rates_follow_the_schedule_the_plateau_and_each_group():
    run, state = plain(scheduler="plateau")
    first, second = ({"params": [p], "lr": 0.0, "initial_lr": 0.0, "layer_group": 0} for p in run.net.parameters())
    run.optimizer = torch.optim.SGD([second | {"initial_lr": 0.2, "layer_group": 1}, first | {"initial_lr": 0.02}])
    run.schedule = Schedule(lambda step: 1 / (step + 1), lambda step: 0.5 + step / 100, plateau=True)
    state.step = 3
    set_rates(run, state)
    assert learning_rates(run.optimizer) == pytest.approx([0.005, 0.05])
    assert [group["momentum"] for group in run.optimizer.param_groups] == [0.53, 0.53]
    state.history = [{"val_loss": 1.0}] * 7
    set_rates(run, state)
    assert learning_rates(run.optimizer) == pytest.approx([0.0005, 0.005])
    run.schedule = Schedule(lambda step: 1.0)
    set_rates(run, state)
    assert learning_rates(run.optimizer) == [0.02, 0.2]
    assert [group["momentum"] for group in run.optimizer.param_groups] == [0.53, 0.53]


def test_dropout_is_another_at_each_step_and_rank_and_the_same_again():
    run, state = make(ema=None, accumulate=1)
    run.net = run.forward = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4)).train()
    run.optimizer = torch.optim.SGD(run.net.parameters(), lr=0.0)
    batch = next(Loader(True).batches(0))
    losses = []
    for step, rank in ((0, 0), (0, 0), (1, 0), (0, 1)):
        state.step, run.world = step, World(rank)
        losses.append(train_step(run, state, [batch], 8)["loss"].item())
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_the_first_batch_without_a_finite_loss_is_named():
    class Broken(Loader):
        def batches(self, epoch, start_step=0):
            for step, (images, *rest) in enumerate(super().batches(epoch, start_step), start_step):
                yield (images * float("nan") if (epoch, step) == (1, 2) else images), *rest

    run, state = plain()
    run.train_loader = Broken(True)
    with pytest.raises(
        NonFiniteLoss, match="training loss is nan in epoch 2, at step 9, at learning rate 0.1"
    ) as raised:
        list(fit(run, state))
    assert (raised.value.epoch, raised.value.step) == (1, 2)


def test_a_validation_loss_that_is_not_finite_stops_the_run():
    run, state = plain(total_steps=6)
    run.valid_loader = Loader(False, scale=float("inf"))
    with pytest.raises(NonFiniteLoss, match="validation loss of epoch 1 is nan") as raised:
        list(fit(run, state))
    assert (raised.value.epoch, state.history) == (None, [])


@pytest.mark.parametrize("broken", ["0.weight", "1.running_var"])
def test_a_weight_that_is_not_finite_is_named(broken):
    _, state = make()
    check_finite(state)
    state.net.state_dict()[broken].select(0, -1).fill_(float("inf"))
    with pytest.raises(NonFiniteLoss, match=f"{broken} of the net is NaN or infinite after step 0"):
        check_finite(state)


def test_shards_of_other_ranks_are_added_and_joined():
    _, state = make()
    shards = [
        {"sums": {"loss": torch.tensor(1.0)}, "recent": {}, "logits": [torch.ones(2)], "labels": [torch.tensor([0])]},
        {"sums": {"loss": torch.tensor(2.0)}, "recent": {"loss": torch.tensor(4.0)}, "logits": [], "labels": []},
        {"sums": {"loss": torch.tensor(8.0)}, "recent": {}, "logits": [torch.zeros(1)], "labels": [torch.tensor([1])]},
    ]
    saved = state.state_dict(shards)
    _, alone = make()
    alone.load_state_dict(saved)
    assert (alone.sums, alone.recent) == ({"loss": torch.tensor(11.0)}, {"loss": torch.tensor(4.0)})
    assert [len(logits) for logits in alone.logits] == [2, 1]
    assert alone.labels == [torch.tensor([0]), torch.tensor([1])]
    of_two = [make()[1] for _ in range(2)]
    for rank, other in enumerate(of_two):
        other.load_state_dict(saved, rank, 2)
    assert [other.sums["loss"].item() for other in of_two] == [9.0, 2.0]
    assert [len(other.labels) for other in of_two] == [2, 0]
    _, idle = make()
    idle.load_state_dict(saved, 3, 4)
    assert (idle.sums, idle.logits) == ({}, [])


def test_early_stopping_looks_at_the_rows_of_the_running_extension():
    _, state = make()
    state.history = [{"step": step} for step in (10, 20, 30)]
    assert state.recent_history == state.history
    state.extensions = [[5, 10], [10, 40]]
    assert state.recent_history == state.history[1:]


# --- the host waits for nothing ----------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for the device: values that are read, shapes that depend on values."""

    OPS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "item", "is_nonzero")

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = 0
        for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__array__", "cpu"):
            monkeypatch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def _counted(self, function):
        def counted(*args, **kwargs):
            # Pixels on the CPU are cut as numpy's; those on a GPU by another function.
            self.count += not (function.__name__ == "numpy" and args[0].dtype == torch.uint8)
            with torch.utils._python_dispatch._disable_current_modes():
                return function(*args, **kwargs)

        return counted

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += any(name in function.__name__ for name in self.OPS)
        return function(*args, **(kwargs or {}))


def waits_of_an_epoch(folder, data, num_images, monkeypatch, **values):
    """(steps, waits) of the training phase of an epoch of the kit's own loader, net, metrics and optimizer."""
    import train
    from model.data_loader import fetch_dataloader
    from model.metric import make_metrics
    from model.net import make_net
    from params import Params

    params = Params(
        **{"arch_args": {"n_filters": 4}, "im_sz": 16, "batch_size": 4, "limit_train": num_images, **values}
    )
    loaders = fetch_dataloader(["train", "valid"], data, params, cache_dir=folder / "cache")
    loader = loaders["train"]
    net = make_net(params, len(loader.classes))[0].to(memory_format=torch.channels_last)
    optimizer = train.make_optimizer(net, params, fused=True)
    run = Run(
        params=params,
        net=net,
        optimizer=optimizer,
        loss_fn=train.make_loss(params, loader.class_counts, "cpu"),
        metrics=make_metrics(["accuracy", "f1"], folder),
        forward=net,
        train_loader=loader,
        valid_loader=loaders["valid"],
        total_steps=loader.num_batches,
        schedule=make_schedule(params, loader.num_batches, loader.num_batches),
        autocast=contextlib.nullcontext,
    )
    state = State(net, optimizer, Ema(net, params.ema) if params.ema else None)
    with monkeypatch.context() as patches, Waits(patches) as waits:
        for event in fit(run, state):
            if isinstance(event, Step):
                return event.step, waits.count
    raise AssertionError("no step")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"mixup": 0.3, "cutmix": 1.0, "label_smoothing": 0.1},
        {"ema": 0.9, "grad_clip": 1.0, "accumulate": 2, "optimizer": "adamw"},
        {"optimizer": "muon", "augment": "strong", "class_weights": "balanced"},
        {"cache": "device", "loss": "focal", "sampler": "balanced"},
    ],
    ids=str,
)
def test_an_epoch_waits_as_often_however_many_steps_it_has(values, tmp_path, monkeypatch):
    data = make_dataset(tmp_path / "data", per_class=24)
    few, many = (waits_of_an_epoch(tmp_path, data, num, monkeypatch, **values) for num in (24, 60))
    assert few[0] == 6
    assert many[0] == 15
    assert few[1] == many[1] <= 3, (few, many)


# --- what an error and a scaler carry -----------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_says_only_its_message():
    error = NonFiniteLoss("the loss is nan", 2, 7)
    assert (str(error), error.epoch, error.step) == ("the loss is nan", 2, 7)
    assert (NonFiniteLoss("x").epoch, NonFiniteLoss("x").step) == (None, None)


def test_the_scale_of_fp16_survives_an_interruption():
    """torch's own arithmetic: the scale doubles after 2 steps without overflow and halves after one with it."""

    def make_state(scale: float) -> State:
        net = nn.Linear(2, 1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
        return State(net, torch.optim.SGD(net.parameters(), lr=0.1), scaler=scaler)

    state = make_state(8.0)
    for value in (1.0, 1.0, float("inf")):
        assert state.scaler is not None
        state.optimizer.zero_grad()
        state.scaler.scale(state.net(torch.ones(1, 2)).sum() * value).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
    again = make_state(1024.0)
    again.load_state_dict(state.state_dict())
    assert again.scaler is not None
    assert again.scaler.get_scale() == 8.0 * 2 / 2
    assert again.scaler.state_dict() == state.scaler.state_dict()
