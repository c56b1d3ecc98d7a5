"""Every mistake a user can make: one line that says what to do, an exit code, nothing written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from kit import TINY, call, experiment, make_dataset, make_images, tree
from PIL import Image


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "colours", per_class=6)


# params.json, or command line -> words the one line must hold
PARAMS = [
    ({"learnig_rate": 0.1}, "learnig_rate", "did you mean 'learning_rate'?"),
    ({"lr": 0.1}, "did you mean 'learning_rate'?"),
    ({"epochs": 3}, "did you mean 'num_epochs'?"),
    ({"bs": 3}, "did you mean 'batch_size'?"),
    ({"model": "resnet18"}, "did you mean 'arch'?"),
    ({"patience": 3}, "early_stopping.patience"),
    ({"early_stopping": {"patince": 3}}, "patince", "'patience'"),
    ({"dropout": 0.5}, "did you mean 'ps'?"),
    ({"xyzzy": 1}, "xyzzy", "possible"),
    ({"learning_rate": "0.1"}, "learning_rate", "number"),
    ({"learning_rate": 0}, "learning_rate", "greater than 0"),
    ({"learning_rate": [0.1, -1]}, "learning_rate"),
    ({"learning_rate": []}, "learning_rate"),
    ({"learning_rate": None}, "learning_rate", "null"),
    ({"batch_size": 0}, "batch_size", "1"),
    ({"batch_size": 1.5}, "batch_size", "integer"),
    ({"batch_size": True}, "batch_size"),
    ({"num_epochs": -1}, "num_epochs"),
    ({"ps": 1.0}, "ps", "less than 1"),
    ({"ps": "half"}, "ps"),
    ({"wd": -1}, "wd"),
    ({"wd": 0, "weight_decay": 0}, "same key"),
    ({"momentum": 1}, "momentum"),
    ({"ema": 2}, "ema"),
    ({"cuda": 2}, "cuda"),
    ({"im_sz": 4}, "im_sz"),
    ({"resize": "stretch"}, "resize", "'letterbox'"),
    ({"scheduler": "cyclic"}, "scheduler", "'cosine'"),
    ({"lr_schedule": [[3, 0.1], [2, 0.1]]}, "lr_schedule"),
    ({"lr_schedule": 0.1}, "lr_schedule"),
    ({"normalize": [[0, 0, 0], [1, 1]]}, "normalize"),
    ({"class_weights": [1, 2]}, "class_weights", "2 weights for 3 classes"),
    ({"class_weights": "balancd"}, "class_weights", "'balanced'"),
    ({"limit_train": 1.5}, "limit_train"),
    ({"limit_train": 2}, "limit_train"),
    ({"valid_fraction": 1}, "valid_fraction"),
    ({"freeze": {"groups": 2}}, "freeze", "epochs"),
    ({"freeze": {"groups": 0, "epochs": 1}}, "freeze.groups"),
    ({"metrics": []}, "metrics"),
    ({"metrics": ["acuracy"]}, "metrics", "'accuracy'"),
    ({"best_metric": "auk"}, "auk", "'auc'"),
    ({"observers": ["tensorbord"]}, "observers", "'tensorboard'"),
    ({"arch": "resnt18", "arch_args": {}}, "arch", "'resnet18'"),
    ({"arch": "timm/no_such_net", "arch_args": {}}, "no_such_net"),
    ({"arch": "net.py:Net"}, "no file"),
    ({"arch_args": {"n_filtres": 3}}, "arch_args", "'n_filters'"),
    ({"arch_args": {"n_filters": "many"}}, "simple_cnn"),
    ({"n_clas": 4}, "n_clas", "3 classes"),
    ({"pretrain": 1}, "pretrain"),
    ({"pretrain": "no_such_file.pth"}, "no_such_file.pth"),
    ({"optimizer": "adan"}, "optimizer", "'adam'"),
    ({"optimizer_args": {"nestrov": True}}, "optimizer_args", "'nesterov'"),
    ({"optimizer": "adam", "optimizer_args": {"betas": 3}}, "optimizer_args"),
    ({"learning_rate": [0.1, 0.2]}, "2 rates for 3 layer groups"),
    ({"loss": "crossentropy"}, "loss", "'cross_entropy'"),
    ({"augment": "flipcrop"}, "augment", "'flip_crop'"),
    ({"augment": ["HorizontalFlp"]}, "augment", "'HorizontalFlip'"),
    ({"augment": [{"name": "Rotate", "limt": 3}]}, "augment", "'limit'"),
    ({"augment": ["Normalize"]}, "Normalize"),
    ({"augment": [{"p": 1}]}, "augment"),
    ({"dataset": "imagefolder"}, "dataset", "'image_folder'"),
    ({"precision": "fp16", "device": "cpu"}, "fp16"),
    ({"device": "gpu"}, "device", "'cuda'"),
    ({"threads": 0}, "threads"),
    ({"seed": -1}, "seed"),
    ({"batch_size": 2, "accumulate": 3}, "batch_size"),
    ({"base": "nowhere"}, "nowhere"),
    ({"base": "."}, "leads back"),
    ({"hyper_search": {"learning_rat": [1]}}, "hyper_search", "learning_rate"),
    ({"hyper_search": {"ps": {"min": 1, "max": 0}}}, "min below max"),
    ({"search": {"sampler": "bayes"}}, "search.sampler"),
]


def refused(argv, words, code=2, watched=()):
    """Call train.py with `argv`: one line holding `words`, `code`, and nothing changed below `watched`."""
    before = [tree(folder) for folder in watched]
    got, printed = call("train", *argv)
    assert got == code, printed
    assert len(printed.strip().splitlines()) == 1, printed
    assert "Traceback" not in printed
    for word in words:
        assert word in printed, printed
    assert [tree(folder) for folder in watched] == before


@pytest.mark.parametrize("case", PARAMS, ids=lambda case: json.dumps(case[0])[:60])
def test_wrong_parameters(case, data, tmp_path):
    written, *words = case
    folder = experiment(tmp_path / "x", **({"device": "cpu"} | written))
    refused(["--data_dir", data, "--model_dir", folder], words, watched=[tmp_path, data])


@pytest.mark.parametrize(
    ("flag", "near"),
    [
        ("--model_dri", "--model_dir"),
        ("--restrat", "--restart"),
        ("--bas", "--base"),
        ("--learnig_rate", "learning_rate"),
    ],
)
def test_a_mistyped_flag_is_answered_with_the_one_that_was_meant(flag, near, data, tmp_path):
    folder = experiment(tmp_path / "x")
    refused(["--data_dir", data, "--model_dir", folder, flag, "3"], [f"did you mean '{near}'?"], watched=[tmp_path])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("[]", "object"),
        ("{", "a closing } or ] is missing"),
        ('{"ps": 0.1, "ps": 0.2}', "twice"),
        ('{"ps": NaN}', "NaN"),
        ('{"ps": 1e999}', "1e999"),
        ("\xff\xfe", "UTF-8"),
        ("[" * 100_000, "deep"),
        ('{"ps": 0.1' + " " * 2_000_000 + "}", "too many"),
    ],
    ids=lambda value: value[:12],
)
def test_files_that_are_no_parameters(text, word, data, tmp_path):
    folder = experiment(tmp_path / "x")
    (folder / "params.json").write_bytes(text.encode("latin-1"))
    refused(["--data_dir", data, "--model_dir", folder], [word, "params.json"], watched=[tmp_path])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--learnig_rate=1"], ["--learnig_rate", "'learning_rate'"]),
        (["--learning_rate"], ["needs a value"]),
        (["--learning_rate=x"], ["learning_rate", "number"]),
        (["--lr_schedule=[[3"], ["not a JSON value"]),
        (["--early_stopping.patience.x=1"], ["early_stopping"]),
        (["--model.n_filtres=3"], ["n_filtres"]),
        (["--accept", "all"], ["--accept"]),
        (["--extend", "2"], ["--extend", "num_epochs"]),
        (["--resume"], ["nothing to resume"]),
        (["--restore_file", "nowhere"], ["nowhere"]),
        (["--restore_file", "best"], ["--restore_file"]),
        (["--base", "nowhere"], ["nowhere"]),
        (["--extend", "x"], ["--extend"]),
        (["a", "b"], ["unrecognized"]),
        (["--ps=NaN"], ["NaN"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_wrong_command_lines(argv, words, data, tmp_path):
    folder = experiment(tmp_path / "x")
    refused(["--data_dir", data, "--model_dir", folder, *argv], words, watched=[tmp_path])


def test_wrong_places(data, tmp_path):
    folder = experiment(tmp_path / "x")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    refused(["--data_dir", data, "--model_dir", tmp_path / "nowhere"], ["nowhere", "params.json"])
    assert not (tmp_path / "nowhere").exists()
    refused(["--data_dir", data, "--model_dir", tmp_path / "empty"], ["params.json", "--base"])
    refused(["--data_dir", data, "--model_dir", tmp_path / "file"], ["file"])
    refused(["--model_dir", folder], ["--data_dir"])
    refused([], ["--model_dir"])
    refused(["--data_dir", tmp_path / "nowhere", "--model_dir", folder], ["nowhere", "build_dataset.py"])
    refused(["--data_dir", tmp_path / "file", "--model_dir", folder], ["is a file", "build_dataset.py"])
    refused(["--data_dir", tmp_path / "empty", "--model_dir", folder], ["no train folder"])


def leave_one_class(data: Path) -> None:
    for split in ("train", "valid"):
        for name in ("class_1", "class_2"):
            shutil.rmtree(data / split / name)


def move_images_out_of_their_class_folders(data: Path) -> None:
    images = {path.parent.name + path.name: path.read_bytes() for path in (data / "train").rglob("*.png")}
    shutil.rmtree(data / "train")
    (data / "train").mkdir()
    for name, content in images.items():
        (data / "train" / name).write_bytes(content)


def first_image(data: Path) -> Path:
    return next((data / "train/class_0").iterdir())


# What can be wrong with a dataset: name -> a function that breaks a copy of one.
BREAK = {
    "empty class": lambda data: (data / "train/empty").mkdir(),
    "other classes": lambda data: make_images(data / "valid", classes=4, per_class=2),
    "missing class": lambda data: shutil.rmtree(data / "valid/class_1"),
    "one class": leave_one_class,
    "no class folders": move_images_out_of_their_class_folders,
    "broken image": lambda data: first_image(data).write_bytes(first_image(data).read_bytes()[:60]),
    "text as image": lambda data: first_image(data).write_text("not an image"),
    "empty image": lambda data: first_image(data).write_bytes(b""),
    "two valids": lambda data: shutil.copytree(data / "valid", data / "val"),
    "float image": lambda data: Image.fromarray(np.zeros((8, 8), np.float32)).save(data / "train/class_0/float.tiff"),
}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty class", ["empty", "no images"]),
        ("other classes", ["extra: class_3"]),
        ("missing class", ["missing: class_1"]),
        ("one class", ["at least two"]),
        ("no class folders", ["no class folders"]),
        ("broken image", ["1 of", "000.png"]),
        ("text as image", ["not a", "on_bad_image"]),
        ("empty image", ["empty file"]),
        ("two valids", ["same split"]),
        ("float image", ["float.tiff"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_data(kind, words, tmp_path):
    data, folder = make_dataset(tmp_path / "data", ("train", "valid"), per_class=6), experiment(tmp_path / "x")
    BREAK[kind](data)
    refused(["--data_dir", data, "--model_dir", folder], words, watched=[folder])


def test_a_bad_image_can_be_skipped(tmp_path):
    data, folder = (
        make_dataset(tmp_path / "data", ("train", "valid"), per_class=6),
        experiment(tmp_path / "x", on_bad_image="skip"),
    )
    BREAK["empty image"](data)
    code, printed = call("train", "--data_dir", data, "--model_dir", folder)
    assert code == 0
    assert "1 unreadable" in printed


def test_own_net_with_a_fault(data, tmp_path):
    folder = experiment(tmp_path / "x", arch="net.py:Own", arch_args={})
    for text, word in (
        ("def broken(:", "cannot be imported"),
        ("class Other: pass", "Own"),
        (
            "import torch\nclass Own(torch.nn.Flatten):\n    def __init__(self, num_classes):\n        super().__init__()",
            "logits",
        ),
    ):
        (folder / "net.py").write_text(text)
        refused(["--data_dir", data, "--model_dir", folder], [word])
        import sys

        [sys.modules.pop(name) for name in list(sys.modules) if name.startswith("_experiment_")]


def test_the_table_is_long_enough():
    assert len(PARAMS) >= 60
    assert TINY
