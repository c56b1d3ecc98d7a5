"""train.py --find_lr: what it suggests, and that it leaves everything else as it was."""

import json
import shlex

import numpy as np
import pytest
import torch
from kit import call, experiment, history, interrupt, tree, weights

from engine.use.trials.find_lr import (
    BEGUN,
    NUM_STEPS,
    SMOOTHING,
    Curve,
    rate_at,
    suggest_rates,
    valley,
    warn_of_flat,
    with_rate,
)
from params import Params
from utils import UserError

WRITTEN = {"lr_find.png", "record/lr_find.json"}


def found(folder) -> dict:
    return json.loads((folder / "record/lr_find.json").read_text())


# --- the curve ------------------------------------------------------------------------------------------------


def made(loss_at) -> Curve:
    """A curve whose smoothed losses are `loss_at` of the rates."""
    curve = Curve()
    for step in range(NUM_STEPS):
        curve.rates.append(rate_at(step))
    curve.smoothed = [float(loss_at(rate)) for rate in curve.rates]
    curve.losses = curve.smoothed
    return curve


def test_rates_rise_by_the_same_factor_each_step():
    rates = [rate_at(step) for step in range(NUM_STEPS)]
    assert rates[0] == pytest.approx(1e-7)
    assert rates[-1] == pytest.approx(10)
    assert np.diff(np.log(rates)) == pytest.approx(np.log(1e8) / 99)


def test_losses_are_smoothed_as_defined_and_divergence_is_seen():
    rng, curve = np.random.default_rng(0), Curve()
    for step, loss in enumerate(losses := rng.uniform(1, 2, 30)):
        curve.add(rate_at(step), loss)
        share = SMOOTHING ** np.arange(step, -1, -1)
        assert curve.smoothed[-1] == pytest.approx((losses[: step + 1] * share).sum() / share.sum())
        assert not curve.has_diverged
    curve.add(1, 60)
    assert curve.has_diverged
    below = Curve()
    for loss in (-1.0, -2.0, -2.0):  # a loss of one's own may be negative
        below.add(1e-3, loss)
        assert not below.has_diverged


def test_suggestions_on_a_curve_that_is_known():
    # Flat, then a fall whose slope is steepest at 1e-3 and which ends at 1e-1, then up.
    def loss(rate):
        place = np.log10(rate)
        return 2 - np.clip((np.tanh(place + 3) + 1) / 2, 0, (np.tanh(2) + 1) / 2) + 5 * max(0, place + 1)

    rates = suggest_rates(made(loss))
    assert rates["steepest"] == pytest.approx(1e-3, rel=0.15)
    assert rates["minimum over ten"] == pytest.approx(1e-2, rel=0.15)
    start = np.arctanh(2 * BEGUN * (np.tanh(2) + 1) / 2 - 1) - 3
    assert np.log10(rates["valley"]) == pytest.approx(start + 2 / 3 * (-1 - start), abs=0.12)


def test_the_valley_by_hand():
    """It begins at the last loss within a twentieth of the whole fall below the first: 9.5 of 10 -> 0."""
    assert valley(np.array([10.0, 10.0, 9.5, 9.4, 8, 6, 4, 2, 0, 5])) == 2 + 2 * 6 // 3
    assert valley(np.array([10.0, 10.0, 9.4, 9.6, 8, 6, 4, 2, 0, 5])) == 3 + 2 * 5 // 3
    assert valley(np.array([10.0, 12.0, 9.6, 9.4, 8, 6, 4, 2, 0, 5])) == 2 + 2 * 6 // 3
    assert valley(np.array([1.0, 2.0, 3.0])) == 0


@pytest.mark.parametrize(
    ("values", "rate", "flag"),
    [
        ({"learning_rate": 0.05}, 0.02, "--learning_rate=0.02"),
        ({"learning_rate": [0.01, 0.1]}, 0.05, "--learning_rate=[0.005, 0.05]"),
        ({"lr_schedule": [[3, 0.1], [9, 0.01]]}, 0.05, "--lr_schedule=[[3.0, 0.05], [9.0, 0.005]]"),
    ],
)
def test_the_flag_keeps_the_proportions_of_the_rates(values, rate, flag):
    assert with_rate(Params(**values), rate) == flag


def test_a_curve_that_hardly_falls_or_not_below_its_noise_has_a_warning():
    curve = made(lambda rate: 2.0 if rate < 1e-3 else 1.9)
    assert warn_of_flat(curve) == ""
    curve.smoothed = [2.0] * 99 + [1.95]  # 2.5 % of the loss; 3 % are a fall
    assert "hardly falls at any rate (2 -> 1.95)" in warn_of_flat(curve)
    curve.smoothed = [2.0] * 99 + [1.9]
    curve.losses = [1.8, 2.2] * 50  # its noise is larger than its fall
    assert "hardly falls" in warn_of_flat(curve)


def test_it_has_diverged_at_four_times_the_lowest_loss():
    curve = Curve(rates=[1.0, 2.0])
    for last, has_diverged in ((3.9, False), (4.0, False), (4.1, True)):
        curve.smoothed = [1.0, last]
        assert curve.has_diverged is has_diverged
    curve.smoothed = [-1.0, 2.1]
    assert curve.has_diverged


def test_noise_on_the_plateau_does_not_move_the_valley():
    rng = np.random.default_rng(1)
    noise = dict(zip(np.round([rate_at(s) for s in range(NUM_STEPS)], 12), rng.normal(0, 0.01, NUM_STEPS), strict=True))

    def loss(rate):
        return 2 - np.clip(np.log10(rate) + 4, 0, 3) / 3 + 4 * max(0, np.log10(rate) + 1)

    clean = suggest_rates(made(loss))
    noisy = suggest_rates(made(lambda rate: loss(rate) + noise[np.round(rate, 12)]))
    assert noisy["valley"] == pytest.approx(clean["valley"], rel=0.5)
    assert clean["valley"] == pytest.approx(10 ** (-4 + 0.15 + 2 / 3 * 2.85), rel=0.2)


def test_a_short_curve_suggests_nothing():
    curve = Curve(ended="was no longer finite at 1e-06")
    for step in range(12):
        curve.add(rate_at(step), 1.0)
    with pytest.raises(UserError, match="no longer finite at 1e-06, after 12 of 100 steps"):
        suggest_rates(curve)


# --- the folder -----------------------------------------------------------------------------------------------


def test_a_created_folder_stays_created_and_trains_as_if_nothing_had_been(train, tmp_path):
    plain, tested = (experiment(tmp_path / name, ema=0.9, mixup=0.2) for name in "ab")
    before = tree(tested)
    code, printed = train(tested, "--find_lr")
    assert code == 0, printed
    after = tree(tested)
    assert after.keys() - before.keys() == WRITTEN
    assert all(after[name] == before[name] for name in before)
    for word in ("valley", "steepest", "minimum over ten", "now", "--learning_rate="):
        assert word in printed
    lines = found(tested)
    assert lines["weights"] == "fresh weights"
    assert lines["learning_rate"] == 0.05
    assert len(lines["rates"]) == len(lines["losses"]) == len(lines["smoothed"]) == lines["steps"]
    assert len(set(lines["losses"])) > 20
    assert lines["smoothed"][0] == pytest.approx(lines["losses"][0])
    assert after["lr_find.png"].startswith(b"\x89PNG")

    assert train(plain)[0] == train(tested)[0] == 0
    for which in ("best", "last"):
        assert weights(plain, which) == weights(tested, which)
    assert history(plain) == history(tested)


def test_the_same_test_gives_the_same_bytes(train, tmp_path):
    folder = experiment(tmp_path / "x")
    train(folder, "--find_lr")
    first = tree(folder)
    train(folder, "--find_lr", "--num_workers=1")
    again = found(folder)
    assert json.loads(first["record/lr_find.json"])["losses"] == again["losses"]
    assert tree(folder)["lr_find.png"] == first["lr_find.png"]


def test_a_done_folder_stays_done(train, tmp_path):
    folder = experiment(tmp_path / "x")
    train(folder, "--batch_size=12")
    before = tree(folder)
    code, printed = train(folder, "--find_lr")
    assert code == 0, printed
    assert "--base" in printed, printed
    assert "--batch_size=12" in printed, printed
    after = tree(folder)
    assert after.keys() - before.keys() == WRITTEN
    assert all(after[name] == before[name] for name in before)
    assert found(folder)["batch_size"] == 12, "overrides are remembered, as by a run that is continued"
    assert "is done" in train(folder)[1]

    fresh = found(folder)["losses"]
    code, printed = train(folder, "--find_lr", "--restore_file", "best")
    assert code == 0
    assert "on best" in printed
    assert found(folder)["losses"] != fresh
    assert {name: data for name, data in tree(folder).items() if name not in WRITTEN} == before

    words = shlex.split(printed.splitlines()[-1].replace("NEW_FOLDER", str(tmp_path / "new")))
    assert words[:2] == ["python", "train.py"]
    code, printed = call("train", *words[2:])
    assert code == 0, printed
    resolved = json.loads((tmp_path / "new/record/resolved.json").read_text())
    assert resolved["batch_size"] == 12
    assert resolved["learning_rate"] == found(folder)["suggestions"]["valley"]


def test_an_interrupted_folder_goes_on_to_the_same_bits(train, tmp_path, data):
    options = {"num_epochs": 40, "scheduler": "plateau"}
    whole, parts = experiment(tmp_path / "whole", **options), experiment(tmp_path / "parts", **options)
    train(whole)
    assert interrupt(parts, data) == 143
    before = tree(parts)
    assert train(parts, "--find_lr")[0] == 0
    assert {name: data for name, data in tree(parts).items() if name not in WRITTEN} == before
    code, printed = train(parts)
    assert code == 0
    assert "continuing at" in printed
    assert weights(parts) == weights(whole)
    assert history(parts) == history(whole)


def test_a_new_folder_from_a_base(train, tmp_path):
    base = experiment(tmp_path / "base")
    code, printed = train(tmp_path / "new", "--base", base, "--find_lr", "--wd=0.001")
    assert code == 0, printed
    assert tree(tmp_path / "new").keys() == {"params.json", *WRITTEN}
    code, printed = call("train", *shlex.split(printed.splitlines()[-1])[2:])
    assert code == 0, printed
    resolved = json.loads((tmp_path / "new/record/resolved.json").read_text())
    assert resolved["wd"] == 0.001
    assert resolved["learning_rate"] == found(tmp_path / "new")["suggestions"]["valley"]


# --- what is tested -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "shares"),
    [
        ({}, [1, 1, 1]),
        ({"learning_rate": [0.001, 0.01, 0.1]}, [0.01, 0.1, 1]),
        ({"lr_schedule": [[1, 0.2], [2, 0.02]]}, [1, 1, 1]),
        ({"lr_schedule": [[1, 0.2], [2, 0.02]], "learning_rate": [0.1, 0.1, 0.2]}, [0.5, 0.5, 1]),
        ({"scheduler": "cosine", "warmup": 1, "num_epochs": 3}, [1, 1, 1]),
    ],
)
def test_every_group_has_its_share_of_the_rate(train, tmp_path, monkeypatch, values, shares):
    seen, momenta, step = [], [], torch.optim.SGD.step

    def spy(self, *args):
        seen.append({group["layer_group"]: group["lr"] for group in self.param_groups})
        momenta.append({group["momentum"] for group in self.param_groups})
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    folder = experiment(tmp_path / "x", **values)
    code, printed = train(folder, "--find_lr")
    assert code == 0, printed
    rates = found(folder)["rates"]
    assert rates == pytest.approx([rate_at(step) for step in range(len(rates))])
    for one, rate in zip(seen, rates, strict=False):
        assert [one[group] for group in range(3)] == pytest.approx([rate * share for share in shares])
    assert len(seen) == len(rates), "nothing but the rate changes"
    assert momenta == [{0.9}] * len(rates), "nothing but the rate changes"
    peak = 0.2 if "lr_schedule" in values else max(np.atleast_1d(values.get("learning_rate", 0.05)))
    assert found(folder)["learning_rate"] == peak

    code, printed = call("train", *shlex.split(printed.splitlines()[-1])[2:])
    assert code == 0, printed
    resolved = json.loads((folder / "record/resolved.json").read_text())
    key = "lr_schedule" if "lr_schedule" in values else "learning_rate"
    used = [rate for _, rate in resolved[key]] if key == "lr_schedule" else np.atleast_1d(resolved[key])
    assert max(used) == found(folder)["suggestions"]["valley"], "the command makes it the largest rate"
    assert len(np.atleast_1d(used)) == len(np.atleast_1d(values.get(key, 0.05)))


def test_what_is_frozen_at_first_stays_so(train, tmp_path, monkeypatch):
    grads, step = [], torch.optim.SGD.step

    def spy(self, *args):
        grads.append([group["params"][0].grad is None for group in self.param_groups])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    folder = experiment(tmp_path / "x", freeze={"groups": 2, "epochs": 1})
    assert train(folder, "--find_lr")[0] == 0
    assert len(grads) > 50
    assert {tuple(one) for one in grads} == {(True, True, True, True, False, False)}


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "muon"},
        {"optimizer": "adamw", "accumulate": 2, "grad_clip": 1.0, "ema": 0.9},
        {"precision": "bf16", "cutmix": 1.0, "label_smoothing": 0.1},
        {"progressive": {}, "im_sz": 32, "sampler": "balanced", "loss": "focal"},
        {"fold": [1, 3], "augment": ["HorizontalFlip"]},
    ],
    ids=lambda values: next(iter(values)),
)
def test_whatever_the_run_has_is_tested(train, tmp_path, values):
    folder = experiment(tmp_path / "x", **values)
    code, printed = train(folder, "--find_lr")
    assert code == 0, printed
    lowest, highest = min(found(folder)["suggestions"].values()), max(found(folder)["suggestions"].values())
    assert 0 < lowest <= highest <= 10
    assert found(folder)["steps"] > 50


def test_a_net_that_hardly_learns_is_said(train, tmp_path):
    folder = experiment(tmp_path / "x", arch="net.py:Deaf", arch_args={})
    (folder / "net.py").write_text(
        "import torch\n"
        "class Deaf(torch.nn.Module):\n"
        "    def __init__(self, num_classes, dropout=0.0):\n"
        "        super().__init__()\n"
        "        self.bias = torch.nn.Linear(1, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.bias(x.mean((1, 2, 3))[:, None] * 0)\n"
    )
    code, printed = train(folder, "--find_lr")
    assert code == 0, printed
    assert "the loss hardly falls at any rate" in printed, printed


# --- what is said ---------------------------------------------------------------------------------------------


def test_json(train, tmp_path):
    folder = experiment(tmp_path / "a b")
    code, printed = train(folder, "--find_lr", "--json")
    said = json.loads(printed)
    assert code == 0
    assert set(said["suggestions"]) == {"valley", "steepest", "minimum_over_ten"}
    assert said["figure"] == str(folder / "lr_find.png")
    assert f"'{folder}'" in said["command"]
    assert said["suggestions"] == found(folder)["suggestions"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--restart"], ["leave --restart out"]),
        (["--resume", "--extend", 2], ["--resume, --extend"]),
        (["--accept", "data"], ["--accept"]),
        (["--code", "folder"], ["leave --code out"]),
        (["--verify"], ["not allowed with"]),
        (["--prepare"], ["not allowed with"]),
        (["--restore_file", "nowhere.pth"], ["nowhere.pth", "no such weights file"]),
        (["--learning_rate=0"], ["greater than 0"]),
        (["--learning_rate=[0.1, 0.2]"], ["2 rates for 3 layer groups"]),
        (["--find_lr=3"], ["find_lr"]),
        (["--find-lr"], ["find_lr"]),
    ],
)
def test_wrong_flags_are_one_line(train, tmp_path, flags, words):
    folder = experiment(tmp_path / "x")
    before = tree(folder)
    code, printed = train(folder, "--find_lr", *flags)
    assert code == 2, printed
    assert len(printed.splitlines()) == 1, printed
    assert not [word for word in words if word not in printed], printed
    assert tree(folder) == before


def test_a_loss_that_is_never_finite(train, tmp_path):
    folder = experiment(tmp_path / "x", loss="loss.py:broken")
    (folder / "loss.py").write_text("def broken(logits, labels):\n    return logits.sum(dim=1) / 0\n")
    before = {**tree(folder)}
    code, printed = train(folder, "--find_lr")
    assert code == 6, printed
    assert "no longer finite at 1e-07, after 0 of 100 steps" in printed, printed
    assert {name: data for name, data in tree(folder).items() if "__pycache__" not in name} == before
