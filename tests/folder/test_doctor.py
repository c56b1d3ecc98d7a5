"""--doctor and --overfit: each mistake is named, a sound run is not, and nothing is trained for good."""

import json
import shutil

import numpy as np
import pytest
from kit import call, experiment, make_dataset
from PIL import Image

SMALL = {"arch": "simple_cnn", "im_sz": 16, "batch_size": 16, "num_epochs": 30, "precision": "fp32", "threads": 1}
DEAD = """
from torch import nn
class Net(nn.Module):
    def __init__(self, num_classes, dropout=0.0):
        super().__init__()
        self.first, self.act = nn.Conv2d(3, 8, 3), nn.ReLU()
        self.head = nn.Linear(8, num_classes)
        nn.init.zeros_(self.first.weight)
        nn.init.constant_(self.first.bias, -1.0)
    def forward(self, x):
        return self.head(self.act(self.first(x)).mean(dim=(2, 3)))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "colours")


def examine(data, folder, *flags):
    """(exit code, about -> the findings to look at, all that was printed)."""
    code, printed = call("train", "--data_dir", data, "--model_dir", folder, "--doctor", *flags)
    if not (folder / "record/doctor.json").exists():
        return code, {}, printed
    findings = json.loads((folder / "record/doctor.json").read_text())["findings"]
    return code, {one["about"]: one["text"] for one in findings if one["is_odd"]}, printed


def test_a_sound_run_has_nothing_unusual(data, tmp_path):
    folder = experiment(tmp_path / "e", **SMALL)
    code, odd, printed = examine(data, folder)
    assert (code, odd) == (0, {}), printed
    assert "nothing unusual" in printed
    assert not (folder / "weights").exists()
    assert not (folder / "checkpoints").exists()
    assert call("train", "--data_dir", data, "--model_dir", folder, "--num_epochs=1")[0] == 0  # it starts as ever


@pytest.mark.parametrize(
    ("changes", "about", "says"),
    [
        ({"learning_rate": 300.0}, "rate", "far too high"),
        ({"num_epochs": 1}, "schedule", "steps are few"),
        ({"early_stopping": {"patience": 40}}, "schedule", "early_stopping waits 40 epochs, the run has 30"),
        ({"lr_schedule": [[50, 0.1], [60, 0.01]]}, "schedule", "changes after epoch 50, the run ends at 30"),
        ({"normalize": [[125.0, 125.0, 125.0], [60.0, 60.0, 60.0]]}, "pixels", "see normalize"),
    ],
)
def test_a_mistake_in_the_parameters_is_named(data, tmp_path, changes, about, says):
    code, odd, printed = examine(data, experiment(tmp_path / "e", **(SMALL | changes)))
    assert code == 0, printed
    assert says in odd[about]


def test_a_range_test_that_says_nothing_accuses_no_rate(data, tmp_path):
    """A net that hardly moves in 100 steps: everything but its head is frozen noise, behind a tiny scale."""
    folder = experiment(tmp_path / "e", **(SMALL | {"arch": "net.py:Net"}), arch_args={})
    (folder / "net.py").write_text(DEAD.replace("self.head(", "1e-12 * self.head("))
    code, odd, printed = examine(data, folder)
    assert code == 0, printed
    assert "the loss hardly falls at any rate" in printed
    assert "rate" not in odd


def test_a_dead_layer_is_named(data, tmp_path):
    folder = experiment(tmp_path / "e", **(SMALL | {"arch": "net.py:Net"}), arch_args={})
    (folder / "net.py").write_text(DEAD)
    code, odd, printed = examine(data, folder)
    assert code == 0, printed
    assert "act 100%" in odd["units"]


def test_images_on_both_sides_and_unequal_classes_are_named(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (name, other, *_) = sorted(path.name for path in (copy / "train").iterdir())
    train = sorted((copy / "train" / name).iterdir())
    valid = sorted((copy / "valid" / name).iterdir())
    shutil.copy(train[0], valid[0])
    for number in range(300):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(copy / "train" / other / f"more_{number}.png")
    code, odd, printed = examine(copy, experiment(tmp_path / "e", **SMALL))
    assert code == 0, printed
    assert f"valid/{name}/{valid[0].name} = train/{name}/{train[0].name}" in odd["duplicates"]
    assert 'class_weights: "balanced"' in odd["classes"]
    # A start says what costs nothing to see.
    code, printed = call("train", "--data_dir", copy, "--model_dir", tmp_path / "e", "--num_epochs=1")
    assert code == 0
    assert "look: classes: " in printed
    assert "look: schedule: " in printed


def overfit(data, folder, number, *flags):
    code, printed = call("train", "--data_dir", data, "--model_dir", folder, "--overfit", number, *flags)
    assert code == 0, printed
    return json.loads((folder / "record/overfit.json").read_text()), printed


def test_a_sound_net_learns_a_few_images_by_heart(data, tmp_path):
    folder = experiment(tmp_path / "e", **SMALL, ps=0.5, mixup=0.4)
    result, printed = overfit(data, folder, 24)
    assert result["passed"], printed
    assert (result["images"], result["accuracy"]) == (24, 1.0)
    assert printed.startswith("pass: 24 images learned by heart in ")
    assert "no better than guessing" not in result["validation"]
    assert not (folder / "weights").exists()
    assert json.loads((folder / "params.json").read_text())["ps"] == 0.5


def test_labels_that_have_nothing_to_do_with_the_images_are_learned_and_say_nothing(tmp_path):
    """Noise: what is learned by heart helps with no other image."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 24), ("valid", 60)):
        for label in "ab":
            folder = tmp_path / "noise" / split / label
            folder.mkdir(parents=True)
            for n in range(number):
                Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{n}.png")
    result, printed = overfit(tmp_path / "noise", experiment(tmp_path / "e", **SMALL), 48)
    assert result["passed"], printed
    assert "no better than guessing" in result["validation"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learning_rate": 1e4, "optimizer": "adamw"}, "too high"),
        ({"learning_rate": 1e-9}, "far too high or far too low"),
    ],
)
def test_what_blocks_it_is_said(data, tmp_path, changes, says):
    result, printed = overfit(data, experiment(tmp_path / "e", **(SMALL | changes)), 24)
    assert not result["passed"]
    assert says in result["blocked"], printed
    assert printed.startswith("FAIL: 24 images")


def test_equal_images_with_other_labels_block_it(tmp_path):
    data = make_dataset(tmp_path / "data")
    first, second = sorted((data / "train").iterdir())[:2]
    for path in (*first.iterdir(), *second.iterdir()):
        Image.new("RGB", (16, 16), (9, 9, 9)).save(path, format="PNG")
    result, printed = overfit(data, experiment(tmp_path / "e", **SMALL), 24)
    assert "equal images have different labels: " in result["blocked"], printed


def test_flags_that_make_no_sense_with_it(data, tmp_path):
    folder = experiment(tmp_path / "e", **SMALL)
    for flags, says in [
        (("--doctor", "--extend", "3"), "--doctor looks at a run and stops; leave --extend out"),
        (("--overfit", "1"), "give at least 2 images"),
        (("--overfit", "8", "--doctor"), "not allowed with"),
    ]:
        code, printed = call("train", "--data_dir", data, "--model_dir", folder, *flags)
        assert code == 2
        assert says in printed
        assert not (folder / "record").exists()
