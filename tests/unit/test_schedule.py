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


# --- against torch's schedulers, and by hand ------------------------------------------------------------


def torch_rates(make_scheduler, total):
    """The learning rate of each of `total` steps by a scheduler of torch, from 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


TORCHS = {
    "cosine": lambda optimizer, total: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total),
    "linear": lambda optimizer, total: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total),
    "step": lambda optimizer, total: torch.optim.lr_scheduler.MultiStepLR(optimizer, [total // 2, total * 3 // 4]),
    "constant": lambda optimizer, total: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, total),
}


@pytest.mark.parametrize("name", TORCHS)
@pytest.mark.parametrize("warm", [0, 7])
def test_every_step_is_torchs(name, warm):
    total = 40
    shape = make_schedule(settings(scheduler=name, warmup=warm / 10), total, steps_per_epoch=10).multiplier
    length = total if name == "step" else total - warm  # milestones are shares of the whole training
    expected = torch_rates(lambda optimizer: TORCHS[name](optimizer, length), total)
    line = [(step + 1) / (warm + 1) for step in range(warm)]
    shifted = [1.0] * warm + expected[: total - warm] if name != "step" else expected
    assert [shape(step) for step in range(warm)] == pytest.approx(line)
    assert [shape(step) for step in range(warm, total)] == pytest.approx(shifted[warm:], abs=1e-7)


def test_shapes_of_nothing_but_warm_up_are_finite():
    for name in ("cosine", "linear"):
        shape = make_schedule(settings(scheduler=name, warmup=1), 10, steps_per_epoch=10).multiplier
        assert [shape(step) for step in range(10)] == pytest.approx([(step + 1) / 11 for step in range(10)])
        assert shape(10) == pytest.approx(1.0)


def test_one_cycle_ignores_the_warm_up_and_reaches_its_peak():
    plain, warm = (make_schedule(settings(warmup=warmup), 101, 10).multiplier for warmup in (0, 3))
    assert [plain(step) for step in range(101)] == [warm(step) for step in range(101)]
    assert max(plain(step) for step in range(101)) == pytest.approx(1.0, abs=1e-3)
    assert plain(0) == pytest.approx(1 / 25)
    assert plain(100) == pytest.approx(1 / 25e4)


def test_a_cycle_whose_rise_is_one_step_begins_at_the_peak():
    schedule = make_schedule(settings(pct_start=0.1), 10, 10)
    assert schedule.multiplier(0) == pytest.approx(1.0)
    assert schedule.momentum(0) == pytest.approx(0.85)
    assert schedule.multiplier(9) == pytest.approx(1 / 25e4)


def test_momentum_cycles_by_a_twentieth_within_its_bounds_and_for_sgd_alone():
    for momentum, (high, low) in {0.9: (0.95, 0.85), 0.99: (0.999, 0.94), 0.02: (0.07, 0.0)}.items():
        values = [make_schedule(settings(momentum=momentum), 101, 10).momentum(step) for step in range(101)]
        assert values[0] == pytest.approx(high)
        assert min(values) == pytest.approx(low, abs=1e-3)
        assert values[-1] == pytest.approx(high)
    for changes in ({"optimizer": "adamw"}, {"scheduler": "cosine"}, {"momentum": 0.0}, {"lr_schedule": [[3, 0.1]]}):
        assert make_schedule(settings(**changes), 100, 10).momentum is None, changes


def test_durations_are_steps_and_times_come_round():
    from engine.schedule import is_time, num_steps

    assert [num_steps(epochs, 10) for epochs in (0.01, 0.16, 1, 2.5)] == [1, 2, 10, 25]
    assert [step for step in range(1, 12) if is_time(step, 4, 11)] == [4, 8, 11]


def test_rates_of_a_schedule_change_at_fractions_of_an_epoch():
    shape = make_schedule(settings(lr_schedule=[[0.5, 0.3], [1.25, 0.2], [2, 0.1]]), 40, 20).multiplier
    assert [shape(step) for step in (0, 9, 10, 24, 25, 39, 40)] == [0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1]
    assert not make_schedule(settings(lr_schedule=[[2, 0.1]], scheduler="plateau"), 40, 20).plateau
    assert make_schedule(settings(scheduler="plateau"), 40, 20).plateau


def test_a_written_schedule_is_extended_from_a_tenth_of_its_highest_rate():
    given = settings(lr_schedule=[[1, 0.2], [2, 0.4], [3, 0.1]])
    shape = make_schedule(given, 30, 10, extensions=[[30, 40], [40, 60]]).multiplier
    assert [shape(step) for step in (29, 30, 35, 40, 50)] == pytest.approx([0.1, 0.04, 0.02, 0.04, 0.02])
    assert shape(60) == pytest.approx(0.0)
    one = make_schedule(settings(), 30, 10, extensions=[[30, 31]])
    assert [one.multiplier(30), one.multiplier(31)] == pytest.approx([0.1, 0.0])
    assert one.momentum(29) == make_schedule(settings(), 30, 10).momentum(29)
    assert one.momentum(30) == 0.9


def test_a_plateau_begins_after_more_than_patience_epochs_without_a_ten_thousandth():
    assert [plateau_factor([1.0] * num) for num in (6, 7, 12, 13)] == pytest.approx([1, 0.1, 0.1, 0.01])
    barely, hardly = [1.0, *[1 - 0.9e-4] * 6], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1 - 1.1e-4, 1.0]
    assert plateau_factor(barely) == pytest.approx(0.1)
    assert plateau_factor(hardly) == 1
    assert plateau_factor([1.0, 1.0, 1.0], patience=1, factor=0.5) == 0.5
    assert plateau_factor([]) == 1


def test_early_stopping_starts_counting_again_and_needs_min_delta():
    rule = SimpleNamespace(patience=2, monitor_metric="loss", min_delta=0.1, minimize=1)

    def stops(*values):
        return should_stop([{"val_loss": value} for value in values], rule)

    assert not stops(1.0, 1.0, 0.5, 0.5)
    assert stops(1.0, 1.0, 0.5, 0.5, 0.5)
    assert stops(1.0, 0.95, 0.905)  # each is better than the one before it, but not by min_delta than the best
    assert not stops(1.0, 0.95, 0.85)
    assert stops(1.0, None, None)
    assert not stops(None, 1.0)
    assert not should_stop([], rule)
