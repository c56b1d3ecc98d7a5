"""Schedules are pure functions of the step; one_cycle is torch's."""

import math
from types import SimpleNamespace

import pytest
import torch

from engine.schedule import is_time, make_schedule, new_extension, num_steps, plateau_factor, should_stop
from folder.history import best_row
from params.sections import EarlyStoppingKeys


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


SCHEDULERS = {
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40),
    "linear": lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=40),
    "step": lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 30], gamma=0.1),
    "constant": lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    "plateau": lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_shape_is_torchs(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = SCHEDULERS[name](optimizer)
    shape = make_schedule(settings(scheduler=name), 40, 10).multiplier
    for step in range(41):
        assert shape(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), step
        optimizer.step()
        torchs.step()


def test_warmup_is_a_line_up_to_the_shape_which_begins_after_it():
    shape = make_schedule(settings(scheduler="cosine", warmup=2), 100, 10).multiplier
    assert [shape(step) for step in range(20)] == pytest.approx([(step + 1) / 21 for step in range(20)])
    # A cosine over the 80 steps that remain.
    by_hand = {20: 1.0, 40: 0.5 + math.sqrt(0.5) / 2, 60: 0.5, 80: 0.5 - math.sqrt(0.5) / 2, 100: 0.0}
    assert {step: shape(step) for step in by_hand} == pytest.approx(by_hand, abs=1e-12)
    line = make_schedule(settings(scheduler="linear", warmup=2), 100, 10).multiplier
    assert [line(step) for step in (0, 20, 40, 99)] == pytest.approx([1 / 21, 1.0, 0.75, 1 / 80])


def test_warmup_ends_at_the_value_that_the_shape_has_there():
    shape = make_schedule(settings(scheduler="step", warmup=6), 100, 10).multiplier
    values = [shape(step) for step in (0, 29, 59, 60, 74, 75)]
    assert values == pytest.approx([0.1 / 61, 0.1 * 30 / 61, 0.1 * 60 / 61, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (0.04, 0), (0.06, 1), (0.25, 2), (0.36, 4), (1, 10)])
def test_warmup_is_rounded_to_steps(warmup, steps):
    shape = make_schedule(settings(scheduler="constant", warmup=warmup), 100, 10).multiplier
    by_hand = [(step + 1) / (steps + 1) if step < steps else 1.0 for step in range(12)]
    assert [shape(step) for step in range(12)] == pytest.approx(by_hand)


@pytest.mark.parametrize("changes", [{}, {"lr_schedule": [[10, 0.1]]}])
def test_one_cycle_and_lr_schedule_have_no_other_warmup(changes):
    plain = make_schedule(settings(**changes), 100, 10).multiplier
    warmed = make_schedule(settings(warmup=3, **changes), 100, 10).multiplier
    assert [plain(step) for step in range(100)] == [warmed(step) for step in range(100)]


def test_the_values_of_one_cycle():
    """1/25 -> 1 at step 29 of 100 -> 1/250000; momentum the other way round."""
    cycle = make_schedule(settings(), 100, 10)
    assert [cycle.multiplier(step) for step in (0, 29, 99)] == pytest.approx([0.04, 1.0, 4e-6])
    assert cycle.multiplier(14.5) == pytest.approx(0.52)
    assert cycle.multiplier(64) == pytest.approx((1 + 4e-6) / 2)
    assert [cycle.momentum(step) for step in (0, 29, 64, 99)] == pytest.approx([0.95, 0.85, 0.9, 0.95])


@pytest.mark.parametrize(
    ("momentum", "low", "high"), [(0.9, 0.85, 0.95), (0.98, 0.93, 0.999), (0.03, 0.0, 0.08), (0.5, 0.45, 0.55)]
)
def test_momentum_is_cycled_by_a_twentieth_within_bounds(momentum, low, high):
    cycled = make_schedule(settings(momentum=momentum), 100, 10).momentum
    assert (cycled(0), cycled(29)) == pytest.approx((high, low))


@pytest.mark.parametrize(
    "changes", [{"momentum": 0.0}, {"optimizer": "adamw"}, {"scheduler": "cosine"}, {"lr_schedule": [[1, 0.1]]}]
)
def test_momentum_stays_where_it_is_not_cycled(changes):
    assert make_schedule(settings(**changes), 100, 10).momentum is None


def test_only_the_plateau_scheduler_looks_at_the_history():
    plateaus = {name: make_schedule(settings(scheduler=name), 10, 10).plateau for name in SCHEDULERS}
    assert plateaus == dict.fromkeys(SCHEDULERS, False) | {"plateau": True}
    assert not make_schedule(settings(scheduler="plateau", lr_schedule=[[1, 0.1]]), 10, 10).plateau


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "steps"),
    [(3, 7, 21), (0.5, 8, 4), (0.5, 9, 4), (0.5, 11, 6), (0.01, 10, 1), (2.26, 10, 23)],
)
def test_a_duration_in_epochs_is_rounded_to_steps(epochs, per_epoch, steps):
    assert num_steps(epochs, per_epoch) == steps


def test_it_is_time_at_every_multiple_and_at_the_end():
    assert [step for step in range(1, 11) if is_time(step, 4, 10)] == [4, 8, 10]
    assert [step for step in range(1, 9) if is_time(step, 4, 8)] == [4, 8]


def test_extension_is_a_cosine_from_a_tenth_to_zero():
    plain = make_schedule(settings(), 100, 10)
    extended = make_schedule(settings(), 100, 10, extensions=[[100, 150]])
    assert [plain.multiplier(s) for s in range(100)] == [extended.multiplier(s) for s in range(100)]
    assert extended.multiplier(100) == pytest.approx(0.1)
    assert extended.multiplier(125) == pytest.approx(0.05)
    assert extended.multiplier(150) == pytest.approx(0.0)
    assert extended.momentum(120) == 0.9


def test_extensions_follow_each_other_from_a_tenth_of_the_peak():
    """The peak of an lr_schedule is its largest rate, wherever it stands."""
    pieces = [[3, 0.02], [6, 0.4], [10, 0.1]]
    twice = make_schedule(settings(lr_schedule=pieces), 100, 10, extensions=[[100, 120], [120, 160]])
    by_hand = {29: 0.02, 30: 0.4, 60: 0.1, 99: 0.1, 100: 0.04, 110: 0.02, 120: 0.04, 140: 0.02, 160: 0.0}
    assert {step: twice.multiplier(step) for step in by_hand} == pytest.approx(by_hand, abs=1e-12)
    cycled = make_schedule(settings(momentum=0.8), 100, 10, extensions=[[100, 120], [120, 160]])
    momenta = [cycled.momentum(step) for step in (0, 29, 99, 100, 120, 159)]
    assert momenta == pytest.approx([0.85, 0.75, 0.85, 0.8, 0.8, 0.8])


def test_a_stated_schedule_goes_on_as_stated_through_extensions():
    """0.01 until epoch 100, whatever the extensions; what was extended on a cosine before keeps it."""
    given = settings(lr_schedule=[[3, 0.1], [100, 0.01]])
    extensions = [new_extension(given, 40, 60), new_extension(given, 60, 2000)]
    shape = make_schedule(given, 40, 10, extensions).multiplier
    assert [shape(step) for step in (29, 30, 39, 40, 59, 60, 999, 1000, 1999)] == [0.1] + 8 * [0.01]
    assert new_extension(settings(), 40, 60) == [40, 60]
    mixed = make_schedule(given, 40, 10, [[40, 60], new_extension(given, 60, 80)]).multiplier
    assert [mixed(step) for step in (39, 40, 50, 60, 79)] == pytest.approx([0.01, 0.01, 0.005, 0.01, 0.01])
    # An extension that ends before the next rate begins goes on to it.
    early = settings(lr_schedule=[[3, 0.1], [5, 0.01], [9, 0.001]])
    shape = make_schedule(early, 40, 10, [new_extension(early, 40, 100)]).multiplier
    assert [shape(step) for step in (40, 49, 50, 89, 95)] == [0.01, 0.01, 0.001, 0.001, 0.001]


def test_a_plateau_is_more_than_patience_epochs_without_improvement():
    factors = [plateau_factor([1.0] * count) for count in (0, 1, 6, 7, 12, 13, 19)]
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.001])
    assert plateau_factor([1.0] + [0.9999] * 6) == pytest.approx(0.1), "0.01 % is no improvement"
    assert plateau_factor([1.0, 1.0, 1.0, 0.9998, 1.0, 1.0, 1.0]) == 1, "a little more is one"
    assert plateau_factor([2.0, 3.0, 3.0], patience=1, factor=0.5) == 0.5


def test_plateau_is_torchs():
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(60, generator=generator) + torch.linspace(1, 0.5, 60)).tolist()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=5, factor=0.1, eps=0)
    for count in range(1, len(values) + 1):
        torchs.step(values[count - 1])
        assert plateau_factor(values[:count]) == pytest.approx(optimizer.param_groups[0]["lr"])


def stops_after(values, **changes):
    """The epoch, from 1, after which the run stops; None when it does not."""
    rule = EarlyStoppingKeys(**({"patience": 2, "monitor_metric": "loss"} | changes))
    rows = [{"val_loss": value} for value in values]
    return next((epoch for epoch in range(1, len(rows) + 1) if should_stop(rows[:epoch], rule)), None)


@pytest.mark.parametrize(
    ("values", "changes", "epoch"),
    [
        ([1.0, 0.5, 0.6, 0.6, 0.6], {}, 4),
        ([1.0, 0.5, 0.6, 0.4, 0.5, 0.3], {}, None),
        ([1.0, 0.5, 0.5, 0.5], {}, 4),  # the same again is no improvement
        ([1.0, 0.5, 0.6], {"patience": 1}, 3),
        ([1.0, 0.875, 0.75, 0.625], {"min_delta": 0.2}, None),  # 0.25 below the best in two epochs
        ([1.0, 0.75, 0.5, 0.5], {"min_delta": 0.25}, None),  # exactly min_delta is no improvement, but 0.5 is
        ([1.0, 0.75, 0.75], {"min_delta": 0.25}, 3),
        ([1.0, None, None, 0.5], {}, 3),
        ([None, None, 1.0], {}, 2),
        ([0.5, 0.6, 0.7, 0.8], {"minimize": 0}, None),
        ([0.5, 0.4, 0.3], {"minimize": 0}, 3),
        ([-1.0, -2.0, -1.5, -1.5], {}, 4),
    ],
)
def test_early_stopping_by_hand(values, changes, epoch):
    assert stops_after(values, **changes) == epoch


def test_without_a_rule_nothing_stops():
    assert not should_stop([{"val_loss": 1.0}] * 50, None)


def test_early_stopping_watches_the_column_that_is_named():
    rows = [{"train_loss": value, "val_loss": 1 - value, "val_f1": value} for value in (0.5, 0.6, 0.7)]
    falling = {"loss": False, "train_loss": True, "val_f1": False, "own.py:f1": False}
    for name, stops in falling.items():
        rule = EarlyStoppingKeys(patience=2, monitor_metric=name)
        assert should_stop(rows, rule, ["loss"]) == stops, name
        assert should_stop(rows[::-1], rule, ["loss"]) != stops, name
        assert should_stop(rows[::-1], rule, ["loss", "f1"]) == (name == "loss"), name


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
