"""k-fold: who is in which part, that nothing leaks, and that nothing is decoded twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import call, experiment, history, make_dataset, make_images, shell, tree, weights
from loaders import are_equal, batches, loaders, make_params
from sklearn.model_selection import StratifiedKFold

from folder.manifest import SEAL_KEYS
from model.images import folds, reading
from model.images.decode import read_image
from utils import UserError

BOTH = ("train", "valid")


@pytest.fixture(scope="module", params=[BOTH, ("train",)], ids=["train and valid", "train alone"])
def data(request, tmp_path_factory):
    folder = make_dataset(tmp_path_factory.mktemp("data") / "colours", splits=(*request.param, "test"), per_class=11)
    make_images(folder / "train", 1, 4, seed=9)  # 000 to 003 of class_0: other pixels
    for number in range(7):
        shutil.copy(folder / "train/class_1/002.png", folder / f"train/class_1/x{number}.png")
    return folder


def names(part) -> list[str]:
    return list(part.paths)


def contents(part) -> set[bytes]:
    return {(part.source.index.root / path).read_bytes() for path in part.paths}


def everything(data: Path) -> list[str]:
    return sorted(str(p.relative_to(data)) for split in BOTH for p in (data / split).rglob("*.png"))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_every_image_validates_once_and_nothing_leaks(data, k):
    seen = []
    for number in range(1, k + 1):
        both = loaders(data, *BOTH, fold=[number, k])
        assert sorted(names(both["train"]) + names(both["valid"])) == everything(data)
        assert not contents(both["train"]) & contents(both["valid"]), "copies of an image are on one side"
        assert {path.partition("/")[0] for path in names(both["train"])} <= set(BOTH), "never the test split"
        assert min(both["train"].class_counts) > 0 < min(both["valid"].class_counts)
        assert f"fold {number} of {k}" in both["train"].description
        for part in both.values():
            wanted = [f"class_{label}" for label in part.labels]
            assert [path.split("/")[1] for path in part.paths] == wanted
        seen += names(both["valid"])
    assert sorted(seen) == everything(data)


def test_parts_are_as_even_as_those_of_scikit_learn(tmp_path):
    for label, per_class in enumerate((23, 8, 13)):
        make_images(tmp_path / "train" / "x", 1, per_class, side=8, seed=label)
        (tmp_path / "train/x/class_0").rename(tmp_path / f"train/class_{label}")
    (tmp_path / "train/x").rmdir()
    found = folds.fold_assignment(tmp_path, make_params(), 5, tmp_path / "cache")
    labels = np.repeat(np.arange(3), (23, 8, 13))
    wanted = [np.bincount(labels[rows]).tolist() for _, rows in StratifiedKFold(5).split(labels, labels)]
    counts = np.array(list(found["counts"].values())).T.tolist()
    assert sorted(counts) == sorted(wanted)
    assert np.ptp(np.sum(counts, axis=1)) <= 1


def test_parts_are_of_the_contents_alone(data, tmp_path):
    first = loaders(data, *BOTH, fold=[2, 3], seed=0)["valid"]
    other = tmp_path / "renamed"
    for number, path in enumerate(reversed(everything(data))):  # other names, order, folder and split
        target = other / ("train" if number % 3 else "valid") / Path(path).parent.name / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / path, target)
    second = loaders(other, *BOTH, fold=[2, 3], seed=7)["valid"]
    assert contents(second) == contents(first)
    assert second.class_counts == first.class_counts
    assert contents(loaders(data, "valid", fold=[1, 3])["valid"]) != contents(first)


def test_copies_with_different_labels_stay_together(tmp_path):
    data = make_dataset(tmp_path / "data", splits=("train", "valid"), per_class=8)
    for number in range(8):
        shutil.copy(data / f"train/class_0/{number:03d}.png", data / f"valid/class_2/wrong_{number}.png")
    for number in (1, 2, 3):
        both = loaders(data, *BOTH, fold=[number, 3])
        assert not contents(both["train"]) & contents(both["valid"])


def test_both_caches_are_used_and_nothing_is_decoded_again(data, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    loaders(data, *BOTH, cache_dir=cache)
    before = tree(cache)

    def no_reading(*_):
        raise AssertionError("a file is read again")

    monkeypatch.setattr(reading, "read_bytes", no_reading)
    for number in (1, 2, 3):
        for part in loaders(data, *BOTH, cache_dir=cache, fold=[number, 3]).values():
            assert "decoded images on disk" in part.description
            assert part.num_workers == 0
            assert sum(len(batch[0]) for batch in batches(part)) == part.num_images
    folds.fold_assignment(data, make_params(), 3, cache)
    assert tree(cache) == before


@pytest.mark.parametrize("cache", ["disk", "ram", "off", "device"])
def test_images_are_those_of_the_files(data, tmp_path, cache):
    both = loaders(
        data,
        *BOTH,
        fold=[1, 3],
        cache=cache,
        cache_dir=tmp_path,
        augment="none",
        num_workers=0,
        normalize=[[0, 0, 0], [1, 1, 1]],
    )
    for part in both.values():
        for images, labels, positions, _ in part.batches(0):
            files = np.stack([read_image(data / part.paths[int(position)]) for position in positions])
            assert np.array_equal((images * 255).round().permute(0, 2, 3, 1).numpy(), files)
            assert [f"class_{label}" for label in labels] == [
                part.paths[int(position)].split("/")[1] for position in positions
            ]


def test_every_form_of_cache_gives_the_same_batches(data, tmp_path):
    base: dict[str, Any] = {"fold": [3, 3], "augment": "flip_crop", "mixup": 0.2}
    first = [batches(part, 1) for part in loaders(data, *BOTH, cache_dir=tmp_path / "a", **base).values()]
    cases: list[dict[str, Any]] = [
        {"cache": "off", "num_workers": 0},
        {"num_workers": 2},
        {"cache": "ram"},
        {"cache": "device"},
    ]
    for values in cases:
        other = [batches(part, 1) for part in loaders(data, *BOTH, cache_dir=tmp_path / "b", **base, **values).values()]
        assert all(are_equal(one, two) for one, two in zip(first, other, strict=True)), values


def test_a_lossy_cache_is_for_training_alone(data, tmp_path):
    values = {"fold": [2, 3], "augment": "none", "normalize": [[0, 0, 0], [1, 1, 1]], "num_workers": 0}
    lossy = loaders(data, *BOTH, cache="jpeg", cache_dir=tmp_path / "jpeg", **values)
    exact = loaders(data, *BOTH, cache="off", cache_dir=tmp_path / "off", **values)
    assert are_equal(batches(lossy["valid"]), batches(exact["valid"]))
    for one, two in zip(batches(lossy["train"]), batches(exact["train"]), strict=True):
        assert (one[0] - two[0]).abs().max() > 0
        assert (one[0] - two[0]).abs().mean() < 0.2
        assert np.array_equal(one[2], two[2])
    assert lossy["train"].fingerprint != exact["train"].fingerprint


def test_statistics_are_of_the_parts_that_train(data):
    found = []
    for number in (1, 2, 3):
        both = loaders(data, *BOTH, fold=[number, 3], normalize="dataset")
        pixels = np.stack([read_image(data / path) for path in both["train"].paths]) / 255
        assert both["train"].pinned["mean"] == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-6)
        assert loaders(data, "valid", fold=[number, 3], normalize="dataset")["valid"].pinned == both["train"].pinned
        assert loaders(data, "test", fold=[number, 3], normalize="dataset")["test"].pinned == both["train"].pinned
        found.append(tuple(both["train"].pinned["mean"]))
    assert len(set(found)) == 3


def test_all_folds_are_of_the_same_data(data, tmp_path):
    prints = {p.fingerprint for n in (1, 2, 3) for p in loaders(data, *BOTH, fold=[n, 3]).values()}
    assert len(prints) == 1
    copy = shutil.copytree(data, tmp_path / "copy")
    assert loaders(copy, *BOTH, fold=[1, 3])["valid"].fingerprint in prints
    path = copy / "train/class_2/004.png"
    path.write_bytes(path.read_bytes() + b"\0")
    assert loaders(copy, *BOTH, fold=[1, 3])["valid"].fingerprint not in prints
    whole = loaders(copy, *BOTH)
    assert loaders(copy, "test", fold=[1, 3])["test"].fingerprint == loaders(copy, "test")["test"].fingerprint
    assert whole["train"].fold is None


def test_subsets_and_samplers_draw_from_the_parts_that_train(data):
    both = loaders(data, *BOTH, fold=[1, 3], limit_train=9, sampler="balanced")
    whole = loaders(data, *BOTH, fold=[1, 3])
    assert both["train"].num_images == 9
    assert set(names(both["train"])) <= set(names(whole["train"]))
    assert names(both["valid"]) == names(whole["valid"]), "only training images are limited"
    assert both["train"].fold == whole["train"].fold


def test_the_assignment_is_what_the_experiments_have(data, tmp_path):
    found = folds.fold_assignment(data, make_params(seed=5), 3, tmp_path)
    assert sorted(found.get("parts", {})) == everything(data)
    assert found["images"] == len(everything(data))
    for number in (1, 2, 3):
        valid = loaders(data, "valid", fold=[number, 3])["valid"]
        assert sorted(names(valid)) == sorted(path for path, part in found.get("parts", {}).items() if part == number)
        assert valid.fold == {"fold": [number, 3], **found}
        assert valid.class_counts == [counts[number - 1] for counts in found["counts"].values()]


def test_bad_images_are_left_out_of_all_parts(tmp_path):
    data = make_dataset(tmp_path / "data", splits=("train", "valid"), per_class=9)
    for path in ("train/class_0/003.png", "valid/class_1/004.png"):
        (data / path).write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be used"):
        loaders(data, *BOTH, fold=[1, 3])
    seen = []
    for number in (1, 2, 3):
        both = loaders(data, *BOTH, fold=[number, 3], on_bad_image="skip")
        assert "2 unreadable images skipped" in both["train"].description
        seen += names(both["valid"])
    assert len(seen) == len(set(seen)) == 52


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        ([4, 3], r"fold: \[4, 3\] given; \[i, k\] is part i of k"),
        ([1, 1], "k at least 2"),
        ([0, 3], "greater|at least 1"),
        ([1, 2, 3], "fold"),
        (3, "fold"),
        ([1, 40], "fold: 40 parts given; 18 different images make at most 18"),
    ],
)
def test_wrong_folds_are_one_line(fold, message, tmp_path):
    data = make_dataset(tmp_path / "data", splits=("train", "valid"), per_class=3)
    with pytest.raises(UserError, match=message):
        loaders(data, *BOTH, fold=fold)


def test_a_class_that_cannot_be_in_two_parts(tmp_path):
    data = make_dataset(tmp_path / "data", splits=("train", "valid"), per_class=6)
    rare = data / "train/class_1"
    shutil.rmtree(rare), shutil.rmtree(data / "valid/class_1")
    for split in BOTH:
        (data / split / "class_1").mkdir()
        shutil.copy(data / "train/class_0/000.png", data / split / "class_1/a.png")
    with pytest.raises(UserError, match="class 'class_1' would be in one part alone"):
        loaders(data, *BOTH, fold=[1, 3])
    make_images(data / "valid/x", 1, 2, seed=5)
    for path in (data / "valid/x/class_0").iterdir():
        path.rename(data / "valid/class_1" / path.name)
    shutil.rmtree(data / "valid/x")
    said = [loaders(data, *BOTH, fold=[n, 5])["valid"].description for n in range(1, 6)]
    assert all("classes with too few images for every part: class_1" in text for text in said)


# --- the whole run --------------------------------------------------------------------------------------------


def test_a_fold_trains_and_is_recorded_evaluated_and_continued(data, tmp_path):
    folder, again = (experiment(tmp_path / name, fold=[2, 3], num_epochs=3) for name in ("a", "b"))
    code, printed = call("train", "--data_dir", data, "--model_dir", folder)
    assert code == 0, printed
    assert "fold 2 of 3" in printed, printed
    record = json.loads((folder / "record/fold.json").read_text())
    assert record["fold"] == [2, 3]
    assert sorted(record["parts"]) == everything(data)
    found = folds.fold_assignment(data, make_params(), 3)
    assert record["parts_digest"] == found["parts_digest"]
    assert record["counts"] == found["counts"]
    best = json.loads((folder / "metrics_val_best_weights.json").read_text())
    code, printed = call("evaluate", "--model_dir", folder, "--split", "valid", "--json")
    assert code == 0, printed
    metrics = json.loads((folder / "metrics_valid_best.json").read_text())
    assert metrics["accuracy"] == pytest.approx(best["accuracy"])
    listed = (folder / "evaluation_valid/predictions.csv").read_text().splitlines()[1:]
    assert sorted(line.split(",")[0] for line in listed) == sorted(p for p, n in record["parts"].items() if n == 2)

    flags = ["--data_dir", data, "--model_dir", again, "--cache_dir", tmp_path / "another"]
    assert call("train", *flags)[0] == 0
    assert weights(again) == weights(folder)
    code, printed = call("train", "--model_dir", folder, "--num_epochs=4", "--fold=[1, 3]")
    assert code == 2
    assert "fold [2, 3] -> [1, 3]" in printed
    code, printed = call("train", "--model_dir", folder, "--num_epochs=4")
    assert code == 0, printed
    assert len(history(folder)) == 4, printed


def test_a_search_shares_and_records_the_parts(tmp_path):
    data = make_dataset(tmp_path / "data", splits=("train", "valid"), per_class=6)
    parent = experiment(tmp_path / "p", num_epochs=1, hyper_search={"learning_rate": [0.01, 0.1]}, search={"folds": 3})
    before = tree(parent)
    flags = ("--data_dir", data, "--parent_dir", parent)
    done = shell("search_hyperparams", *flags, "--search.folds=40")
    assert done.returncode == 2
    assert "36 different images make at most 36" in done.stderr
    assert tree(parent) == before, "nothing is written"
    done = shell("search_hyperparams", *flags)
    assert done.returncode == 0, done.stderr
    shared = json.loads((parent / "record/folds.json").read_text())
    shared = {key: value for key, value in shared.items() if key not in SEAL_KEYS}
    children = [path.parent.parent for path in parent.glob("*/record/fold.json")]
    assert len(children) == 6
    seen = {}
    for child in children:
        record = json.loads((child / "record/fold.json").read_text())
        assert {key: value for key, value in record.items() if key not in SEAL_KEYS} == {
            "fold": record["fold"],
            **shared,
        }
        assert json.loads((child / "params.json").read_text())["fold"] == record["fold"]
        seen.setdefault(child.name.partition("__")[0], []).append(record["fold"][0])
    assert {name: sorted(parts) for name, parts in seen.items()} == {
        "learning_rate_0.01": [1, 2, 3],
        "learning_rate_0.1": [1, 2, 3],
    }
    assert sorted(shared["parts"]) == everything(data)
    assert set(shared["parts"].values()) == {1, 2, 3}
