"""Schedules are pure functions of the step; one_cycle is torch's."""

import math
from types import SimpleNamespace

import pytest
import torch

from engine.schedule import make_schedule, plateau_factor, should_stop
from folder.history import best_row


def settings(**changes):
    base = {
        "scheduler": "one_cycle",
        "div_factor": 25.0,
        "pct_start": 0.3,
        "warmup": 0.0,
        "lr_schedule": None,
        "optimizer": "sgd",
        "momentum": 0.9,
    }
    return SimpleNamespace(**(base | changes))


@pytest.mark.parametrize("total", [4, 10, 97, 1000])
@pytest.mark.parametrize("pct_start", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("div_factor", [10.0, 25.0])
def test_one_cycle_is_torchs(total, pct_start, div_factor):
    if pct_start * total <= 1:
        pytest.skip("torch divides by zero when the first phase is one step")
    tensor = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [tensor], "lr": 0.3}], lr=0.3, momentum=0.9)
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=0.3,
        total_steps=total,
        pct_start=pct_start,
        div_factor=div_factor,
        base_momentum=0.85,
        max_momentum=0.95,
    )
    ours = make_schedule(settings(pct_start=pct_start, div_factor=div_factor), total, steps_per_epoch=10)
    for step in range(total):
        group = optimizer.param_groups[0]
        assert abs(0.3 * ours.multiplier(step) - group["lr"]) < 1e-12
        assert abs(ours.momentum(step) - group["momentum"]) < 1e-12
        optimizer.step()
        if step + 1 < total:
            torchs.step()


def test_one_cycle_of_one_step_is_finite():
    ours = make_schedule(settings(), 1, 1)
    assert math.isfinite(ours.multiplier(0))
    assert math.isfinite(ours.momentum(0))


def test_lr_schedule_is_piecewise_and_overrides():
    shape = make_schedule(settings(lr_schedule=[[3, 0.1], [100, 0.01]]), 500, steps_per_epoch=5).multiplier
    assert [shape(step) for step in (0, 14, 15, 499, 9999)] == [0.1, 0.1, 0.01, 0.01, 0.01]


@pytest.mark.parametrize(
    ("name", "end"), [("cosine", 0.0), ("linear", 0.0), ("step", 0.01), ("constant", 1.0), ("plateau", 1.0)]
)
def test_shapes_begin_at_one_and_end_where_they_should(name, end):
    shape = make_schedule(settings(scheduler=name), 1000, 100).multiplier
    assert shape(0) == pytest.approx(1.0)
    assert shape(1000) == pytest.approx(end, abs=1e-12)


def test_warmup_is_a_line_up_to_the_shape():
    shape = make_schedule(settings(scheduler="cosine", warmup=1), 100, 10).multiplier
    assert [shape(step) for step in range(10)] == pytest.approx([(k + 1) / 11 for k in range(10)])
    assert shape(10) == pytest.approx(1.0)


def test_extension_is_a_cosine_from_a_tenth_to_zero():
    plain = make_schedule(settings(), 100, 10)
    extended = make_schedule(settings(), 100, 10, extensions=[[100, 150]])
    assert [plain.multiplier(s) for s in range(100)] == [extended.multiplier(s) for s in range(100)]
    assert extended.multiplier(100) == pytest.approx(0.1)
    assert extended.multiplier(125) == pytest.approx(0.05)
    assert extended.multiplier(150) == pytest.approx(0.0)
    assert extended.momentum(120) == 0.9


def test_plateau_is_torchs():
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(60, generator=generator) + torch.linspace(1, 0.5, 60)).tolist()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=5, factor=0.1, eps=0)
    for count in range(1, len(values) + 1):
        torchs.step(values[count - 1])
        assert plateau_factor(values[:count]) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_early_stopping_counts_epochs_without_improvement():
    rule = SimpleNamespace(patience=2, monitor_metric="loss", min_delta=0.01, minimize=1)
    rows = [{"val_loss": value} for value in (1.0, 0.5, 0.495, 0.6)]
    assert not should_stop(rows[:3], rule)
    assert should_stop(rows, rule)
    assert not should_stop(rows, None)
    higher = SimpleNamespace(patience=1, monitor_metric="accuracy", min_delta=0.0, minimize=0)
    assert should_stop([{"val_accuracy": 0.5}, {"val_accuracy": 0.5}], higher)
    assert not should_stop([{"val_accuracy": 0.5}, {"val_accuracy": 0.6}], higher)


def test_early_stopping_knows_the_direction_of_a_metric():
    worse = [{"val_loss": 0.5, "val_accuracy": 0.6}, {"val_loss": 0.6, "val_accuracy": 0.5}]
    for metric in ("loss", "val_loss", "accuracy", "val_accuracy"):
        rule = SimpleNamespace(patience=1, monitor_metric=metric, min_delta=0.0, minimize=None)
        assert should_stop(worse, rule, ["loss"])
        assert not should_stop(worse[::-1], rule, ["loss"])


def test_ties_keep_the_earlier_epoch_and_undefined_values_never_win():
    rows = [{"epoch": e, "val_accuracy": v} for e, v in ((1, None), (2, 0.5), (3, 0.7), (4, 0.7))]
    assert best_row(rows, "accuracy", minimized=[])["epoch"] == 3
    assert best_row(rows, "accuracy", minimized=["accuracy"])["epoch"] == 2
    assert best_row([], "accuracy", minimized=[]) is None
