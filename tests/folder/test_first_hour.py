"""What a newcomer meets in the first hour: the closing lines, a learning rate far too high, data that moved."""

import json
import shutil
import subprocess
import sys

import pytest
from kit import ROOT, call, experiment, make_dataset, shell, tree


def after(text: str, begins: str) -> list[str]:
    """The words after `begins` on its line."""
    return next(line for line in text.splitlines() if begins in line).split(begins)[1].split()


def test_tensorboard_is_named_where_there_are_events(train, tmp_path):
    with_events = experiment(tmp_path / "a", num_epochs=1, observers=["tensorboard"])
    code, out = train(with_events)
    assert code == 0
    (place,) = after(out, "tensorboard --logdir ")
    assert list((tmp_path / "a" / "tensorboard").glob("events*"))
    assert place == str(tmp_path / "a" / "tensorboard")
    assert "tensorboard --logdir" in train(with_events)[1], "once more, when it is done"
    assert "tensorboard --logdir" not in train(experiment(tmp_path / "b", num_epochs=1, observers=[]))[1]


def test_kept_epochs_are_named_and_can_be_started_from(train, tmp_path):
    code, out = train(experiment(tmp_path / "a", num_epochs=4, keep_last=3))
    assert code == 0
    first, _, last = after(out, "kept ")[:3]
    assert first.endswith("/checkpoints/epoch_0002_weights.pt")
    assert last == "epoch_0004.pt:"
    code, out = train(experiment(tmp_path / "b", num_epochs=1), "--restore_file", first)
    assert code == 0
    assert first in out, "the first lines name the weights"
    assert "kept " not in out, "one epoch needs no line"
    assert json.loads((ROOT / "experiments/base_model/params.json").read_text())["keep_last"] == 5


def test_a_rate_far_too_high_is_said_after_the_first_epoch(train, tmp_path):
    folder = experiment(tmp_path / "a", num_epochs=2, learning_rate=30, optimizer="sgd", arch="simple_cnn")
    code, out = train(folder)
    assert code == 0
    assert out.count("times that of guessing (1.10). The learning rate 30 is probably too high") == 1
    before = {path: data for path, data in tree(folder).items() if "lr_find" not in path}
    code, found = call("train", *after(out, "look for one: python train.py "))
    assert (code, "now               30" in found) == (0, True)
    assert {path: data for path, data in tree(folder).items() if "lr_find" not in path} == before
    assert "too high" not in train(experiment(tmp_path / "b", num_epochs=1))[1]


@pytest.mark.parametrize(("factor", "epoch", "is_said"), [(2.9, 1, False), (3.1, 1, True), (9, 2, False)])
def test_the_rule_of_the_hint(factor, epoch, is_said):
    import math
    from types import SimpleNamespace
    from typing import Any

    from engine.events import Epoch
    from engine.use.trials.find_lr import hint_at_rate
    from params import DEFAULTS

    run: Any = SimpleNamespace(params=DEFAULTS, train_loader=SimpleNamespace(classes=list("abcd")))
    for loss, said in ((factor * math.log(4), is_said), (None, False)):
        assert bool(hint_at_rate(run, Epoch(epoch, 10, {"val_loss": loss}, None), ["python"])) == said


def test_data_that_moved(tmp_path):
    data = make_dataset(tmp_path / "old")
    folder = experiment(tmp_path / "x", num_epochs=1)
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    moved = shutil.move(data, tmp_path / "new")
    said = f"{folder} was trained on {data}, where nothing is now; if it moved: --data_dir NEW_PLACE"
    code, out = call("evaluate", folder)
    assert (code, said in out) == (2, True)
    code, out = call("train", folder, "--extend", 1)
    assert (code, said in out) == (2, True)
    assert call("train", folder)[0] == 0, "what is done needs no data"
    assert call("evaluate", folder, "--data_dir", moved)[0] == 0
    code, out = call("train", folder, "--extend", 1, "--data_dir", moved)
    assert (code, "continuing at epoch 2" in out) == (0, True)
    # A search remembers its data, too.
    parent = tmp_path / "s"
    parent.mkdir()
    (parent / "params.json").write_text('{"base": "../x", "hyper_search": {"learning_rate": [0.1]}}')
    assert call("search_hyperparams", "--data_dir", moved, "--parent_dir", parent, "--dry_run")[0] == 0
    shutil.move(moved, data)
    code, out = call("train", "--model_dir", folder, "--data_dir", moved, "--extend", 2)
    assert (code, f"was trained on {moved}" in out) == (2, True), "named on the command line, it is no less gone"


def test_torch_says_nothing_about_the_number_of_workers(data, tmp_path):
    folder = experiment(tmp_path / "x", num_epochs=1, num_workers=40, limit_train=8)
    done = shell("train", "--data_dir", data, "--model_dir", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "40 workers" in done.stdout


@pytest.mark.parametrize(
    "script", sorted(path.stem for path in ROOT.glob("*.py") if path.stem not in ("include", "utils"))
)
def test_help_names_no_flag_that_only_the_kit_uses(script):
    text = subprocess.run(
        [sys.executable, ROOT / f"{script}.py", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "usage" in text
    for flag in ("--serve", "--logits", "SUPPRESS"):
        assert flag not in text
