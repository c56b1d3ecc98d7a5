"""The shipped experiments on the real data sets. Skipped where the archives are not there."""

import json
import shutil

import pytest
from kit import ROOT, SHARED, history, shell
from PIL import Image

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the data archives are not on this machine")
TOP = {
    "params.json",
    "history.json",
    "history.csv",
    "metrics_val_best_weights.json",
    "metrics_val_last_weights.json",
    "train.log",
    "train_history.png",
    "batch_train.png",
    "weights",
    "checkpoints",
    "tensorboard",
    "record",
}
RECORD = {
    "status.json",
    "resolved.json",
    "meta.json",
    "requirements.txt",
    "code",
    "augm.json",
    "stdout.txt",
    "stderr.txt",
    "trust.json",
}
TESTED = {"metrics_test_best.json", "evaluation"}
EVALUATION = {
    "per_class.csv",
    "per_class.md",
    "confusion_matrix.csv",
    "confusion_matrix.png",
    "predictions.csv",
    "top_losses.png",
    "origin.json",
}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """name of an archive -> dataset folder, built once."""
    where = tmp_path_factory.mktemp("data")

    def make(archive: str, *flags: object):
        data = where / archive.partition(".")[0]
        if not data.exists():
            done = shell("build_dataset", "--source", SHARED / archive, "--data_dir", data, *flags)
            assert done.returncode == 0, done.stderr
        return data

    return make


def part(data, target, per_class: int):
    """A dataset folder of the first images of each class."""
    for label in sorted(data.glob("*/*/")):
        (target / label.relative_to(data)).mkdir(parents=True)
        for path in sorted(label.iterdir())[:per_class]:
            shutil.copy(path, target / path.relative_to(data))
    return target


def train(data, folder, name: str, *flags: object) -> None:
    base = ["--base", ROOT / "experiments" / name, "--model_dir", folder, "--threads=1"]
    done = shell("train", "--data_dir", data, *base, *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in folder.iterdir()} == TOP
    assert {path.name for path in (folder / "record").iterdir()} - {"diff.patch"} == RECORD
    assert json.loads((folder / "record/status.json").read_text())["state"] == "done"


def evaluate(data, folder, *flags: object) -> dict:
    done = shell("evaluate", "--data_dir", data, "--model_dir", folder, "--json", *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)["metrics"]


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("simple_cnn", ["--num_epochs=3", "--limit_train=1500"]),
        ("resnet18", ["--num_epochs=1"]),
        ("resnet9", ["--num_epochs=1"]),
    ],
)
def test_cifar10(build, tmp_path, name, flags):
    data, folder = build("cifar10.tar.gz"), tmp_path / name
    data = data if name == "simple_cnn" else part(data, tmp_path / "data", 20)
    train(data, folder, name, *flags)
    evaluate(data, folder)
    assert {path.name for path in folder.iterdir()} >= TESTED
    assert {path.name for path in (folder / "evaluation").iterdir()} == EVALUATION
    if name == "simple_cnn":
        assert [row["epoch"] for row in history(folder)] == [1, 2, 3]
        assert history(folder)[-1]["val_accuracy"] > 0.2


def test_hymenoptera(build, tmp_path):
    pytest.importorskip("timm")
    data, folder = build("hymenoptera_data.tar"), tmp_path / "transfer"
    done = shell("build_dataset", "--data_dir", data, "--check")
    assert done.returncode == 0
    for words in ("imageNotFound.gif", "only", "no test split", "sizes"):
        assert words in done.stdout, f"{words} in\n{done.stdout}"
    flags = ["--pretrain=0", "--num_epochs=1", "--limit_train=16", "--im_sz=64", "--batch_size=16", "--cache=off"]
    train(data, folder, "transfer", *flags)
    assert len(history(folder)[0]["learning_rate"]) == 3
    assert evaluate(data, folder, "--split", "valid")["accuracy"] > 0


def test_pretrained_weights_without_a_network_are_one_line(build, tmp_path):
    folder = tmp_path / "transfer"
    base = ["--base", ROOT / "experiments/resnet18", "--model_dir", folder, "--pretrain=1"]
    no_way = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path)}
    done = shell("train", "--data_dir", build("hymenoptera_data.tar"), *base, **no_way)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not folder.exists()
    assert "pretrain" in done.stderr
    assert "network" in done.stderr


def test_signs_in_their_flat_layout(build, tmp_path):
    archive = next(path.name for path in SHARED.iterdir() if "SIGNS" in path.name.upper())
    data, folder = build(archive), tmp_path / "base_model"
    train(data, folder, "base_model", "--num_epochs=2", "--arch_args.num_channels=8")
    assert 0 < evaluate(data, folder)["accuracy"] <= 1
    assert len(json.loads((folder / "record/resolved.json").read_text())["pinned"]["classes"]) == 6


def test_class_folders_with_upper_case_names_and_formats_that_need_more(build, tmp_path):
    source = tmp_path / "photos"
    for name in ("ants", "bees"):
        (source / name).mkdir(parents=True)
        for number, path in enumerate(sorted((build("hymenoptera_data.tar") / "train" / name).glob("*.jpg"))[:10]):
            shutil.copy(path, source / name / f"IMG_{number}.JPG")
        (source / name / "IMG_99.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    done = shell("build_dataset", "--source", source, "--data_dir", tmp_path / "d")
    assert done.returncode == 0
    assert "2 .heic files ignored: convert them, or install pillow-heif" in done.stdout
    found = sorted((tmp_path / "d").rglob("*.JPG"))
    assert len(found) == 20
    assert Image.open(found[0]).format == "JPEG"
