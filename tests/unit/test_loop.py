"""The loop may be left at any yield and goes on to the same bits: the test that guards `State`."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from kit import make_dataset
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from engine.ema import Ema
from engine.loop import Epoch, NonFiniteLoss, Run, State, Step, fit
from engine.schedule import make_schedule


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
