"""evaluate.py and predict.py on a small net that was really trained."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import predict
from engine.use.evaluation import class_table, collect_outputs, score_classes
from engine.use.inference import Trained, recorded_params
from engine.use.looks import record_look
from folder.trust import Consent
from include import ROOT
from model.tta import average_views
from utils import UserError

METRICS = ["accuracy", "f1", "auc", "ece"]
PARAMS = {"num_epochs": 4, "learning_rate": 0.05, "batch_size": 32, "metrics": METRICS}
PARAMS |= {"precision": "fp32", "threads": 1}


def run(script: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def make_digits(root: Path, classes: list[str], counts: dict[str, int]) -> Path:
    """A dataset folder of real handwritten digits; so many images of each class in each split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, name in enumerate(classes):
        images = iter(digits.images[digits.target == number])
        for split, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = (255 - 15 * next(images)).astype(np.uint8)
                Image.fromarray(pixels).resize((16, 16)).save(root / split / name / f"{index:02}.png")
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    """A dataset of four classes, and an experiment trained on it. Odd characters are on purpose."""
    root = tmp_path_factory.mktemp("with space")
    names = ["nought", "one, or I", "two", "three"]
    data = make_digits(root / "data", names, {"train": 40, "valid": 15, "test": 25})
    folder = root / "exp [1]"
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(PARAMS))
    done = run("train.py", "--data_dir", data, "--model_dir", folder)
    assert done.returncode == 0, done.stderr
    first = run("evaluate.py", "--model_dir", folder)
    return SimpleNamespace(root=root, data=data, folder=folder, first=first)


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def answer(main, capsys, *arguments: object) -> dict:
    """What a script's main() says with --json."""
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# --- evaluate -------------------------------------------------------------------------------------------


def test_everything_is_written_and_printed(world):
    assert world.first.returncode == 0, world.first.stderr
    assert "look 1 at this test set" in world.first.stdout
    assert "| one, or I" in world.first.stdout
    assert str(world.folder / "evaluation") in world.first.stdout
    metrics = json.loads((world.folder / "metrics_test_best.json").read_text())
    assert list(metrics) == ["epoch", "loss", *METRICS]
    assert metrics["accuracy"] > 0.5
    for name in ("confusion_matrix.png", "top_losses.png"):
        with Image.open(world.folder / "evaluation" / name) as image:
            assert min(image.size) > 200
            assert len(image.convert("L").getcolors()) > 10
    assert (world.folder / "evaluation/per_class.md").read_text().startswith("| class")


def test_the_files_agree_with_the_metrics(world):
    rows = read_csv(world.folder / "evaluation/predictions.csv")
    metrics = json.loads((world.folder / "metrics_test_best.json").read_text())
    assert len(rows) == 100
    assert all((world.data / row["path"]).is_file() for row in rows)
    assert all(Path(row["path"]).parent.name == row["label"] for row in rows)
    assert np.mean([row["label"] == row["predicted"] for row in rows]) == pytest.approx(metrics["accuracy"])
    loss = -np.mean([np.log(float(row[f"prob_{row['label']}"])) for row in rows])
    assert loss == pytest.approx(metrics["loss"], abs=1e-6)
    classes = read_csv(world.folder / "evaluation/per_class.csv")
    assert np.mean([float(row["f1"]) for row in classes]) == pytest.approx(metrics["f1"])
    matrix = read_csv(world.folder / "evaluation/confusion_matrix.csv")
    right = sum(int(row[row["true / predicted"]]) for row in matrix)
    assert right == round(metrics["accuracy"] * 100)


def test_looks_are_counted_and_the_batch_size_changes_nothing(world, capsys):
    first = json.loads((world.folder / "metrics_test_best.json").read_text())
    second = answer(evaluate.main, capsys, "--model_dir", world.folder, "--bs_test=7")
    assert second["looks"] == 2
    assert second["metrics"] == pytest.approx({key: first[key] for key in second["metrics"]}, abs=1e-5)
    looks = [json.loads(line) for line in (world.folder / "record/test_looks.jsonl").read_text().splitlines()]
    assert [sorted(look) for look in looks] == 2 * [["code", "data", "metrics", "restore_file", "time", "weights"]]
    assert looks[0]["weights"] == looks[1]["weights"]


def test_valid_is_what_training_said_and_no_look(world, capsys):
    looks = (world.folder / "record/test_looks.jsonl").read_bytes()
    for which in ("best", "last"):
        said = answer(evaluate.main, capsys, "--model_dir", world.folder, "--split=val", "--restore_file", which)
        trained = json.loads((world.folder / f"metrics_val_{which}_weights.json").read_text())
        assert {"epoch": said["epoch"]} | said["metrics"] == pytest.approx(trained, abs=1e-5)
        assert said["looks"] is None
    assert (world.folder / "record/test_looks.jsonl").read_bytes() == looks
    assert (world.folder / "metrics_valid_best.json").exists()
    assert (world.folder / "evaluation_valid_last").is_dir()


def test_train_split_sees_each_image_once(world, tmp_path, capsys):
    answer(evaluate.main, capsys, "--model_dir", world.folder, "--split=train", "--out", tmp_path, "--bs_test=33")
    rows = read_csv(tmp_path / "evaluation_train/predictions.csv")
    assert len({row["path"] for row in rows}) == len(rows) == 160
    assert all(Path(row["path"]).parent.name == row["label"] for row in rows)


def test_the_pictures_are_in_tensorboard(world):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(world.folder / "tensorboard"))
    events.Reload()
    assert {"test/confusion_matrix", "test/top_losses"} <= set(events.Tags()["images"])


def test_mistakes_are_named(world, tmp_path, capsys):
    folder = world.folder
    no_test = tmp_path / "no_test"
    shutil.copytree(world.data, no_test, ignore=lambda path, names: ["test"] if path == str(world.data) else [])
    renamed = tmp_path / "renamed"
    shutil.copytree(world.data, renamed)
    for split in ("train", "valid", "test"):
        (renamed / split / "two").rename(renamed / split / "deux")
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh/params.json").write_text("{}")
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    weights = damaged / "weights/best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    state = next(folder.glob("checkpoints/*.pt"))
    before = sorted(folder.rglob("*"))
    for arguments, says, code in [
        ([], "--model_dir", 2),
        (["--model_dir", tmp_path / "nothing"], "no such experiment folder", 2),
        (["--model_dir", tmp_path / "fresh"], "python train.py", 2),
        (["--model_dir", folder, "--split", "tset"], "did you mean 'test'", 2),
        (["--model_dir", folder, "--data_dir", no_test], "no test split", 2),
        (["--model_dir", folder, "--data_dir", renamed], "deux", 2),
        (["--model_dir", folder, "--restore_file", "worst"], "no such weights file", 2),
        (["--model_dir", folder, "--restore_file", state], "train.py --restore_file takes it", 2),
        (["--model_dir", folder, "--arch=lenet"], "belongs to the trained net", 2),
        (["--model_dir", folder, '--metrics=["acuracy"]'], "did you mean 'accuracy'", 2),
        (["--model_dir", folder, "--spilt=test"], "--spilt", 2),
        (["--model_dir", damaged], "damaged", 3),
    ]:
        with pytest.raises(UserError) as caught:
            evaluate.main([str(argument) for argument in arguments])
        assert says in str(caught.value), (arguments, str(caught.value))
        assert caught.value.code == code, (arguments, str(caught.value))
    assert sorted(folder.rglob("*")) == before
    capsys.readouterr()


def test_per_class_with_classes_that_do_not_occur():
    matrix, lines = score_classes(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), ["a", "b|c", "never"])
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert lines[0].taken_for == "b|c (1)"
    assert lines[2].images == 0
    assert lines[2].f1 == 0
    text = class_table(lines, at_most=2)
    assert "b\\|c" in text
    assert "lowest F1, of 3" in text
    assert "mean over the classes |        3 |      0.7500" in text


def test_a_torn_look_does_not_swallow_the_next(tmp_path):
    assert record_look(tmp_path, {"n": 1}) == 1
    path = tmp_path / "record/test_looks.jsonl"
    path.write_text(path.read_text() + '{"n": 2, "metr')
    assert record_look(tmp_path, {"n": 3}) == 3
    assert json.loads(path.read_text().splitlines()[-1]) == {"n": 3}


class Own(torch.nn.Module):
    """forward is one thing, predict() another: inference takes predict()."""

    def forward(self, images):
        return images.mean(dim=(2, 3))

    def predict(self, images):
        return torch.nn.functional.one_hot(images.mean(dim=(2, 3)).argmin(dim=1), 3).float()


class Loader:
    classes, paths, num_images = ["a", "b", "c"], [f"{i}.png" for i in range(10)], 10
    pinned = {"mean": [0.5] * 3, "std": [0.2] * 3}
    labels = torch.arange(10) % 3

    def batches(self, epoch: int, start_step: int = 0):
        for part in torch.tensor([7, 2, 9, 0, 1, 3, 4, 5, 6, 8]).split(4):
            images = (
                torch.zeros(len(part), 3, 4, 4) + torch.nn.functional.one_hot(self.labels[part], 3)[..., None, None]
            )
            padded = torch.cat([part, part[:1]])
            yield (
                images[[*range(len(part)), 0]],
                self.labels[padded],
                padded,
                torch.tensor([1.0] * len(part) + [0]),
            )


def test_predict_of_the_nets_own_is_used_and_the_order_is_the_files():
    kit = {"classes": ["a", "b", "c"], "im_sz": 4, "normalisation": Loader.pinned}
    outputs = collect_outputs(
        Trained(Own(), Path(), "best", None, kit, "cpu", average_views, "none"), Loader(), num_worst=3
    )
    assert outputs.positions.tolist() == list(range(10))
    assert (outputs.labels == Loader.labels).all()
    assert torch.isfinite(outputs.logits).all()
    assert not (outputs.predicted == outputs.labels).any()
    assert len(outputs.worst) == len(outputs.pixels) == 3
    for row, pixels in zip(outputs.worst, outputs.pixels, strict=True):  # each picture is that of its row
        assert pixels[0, 0].argmax() == outputs.labels[row]


def test_references_are_read_from_the_copy_that_ran(tmp_path):
    values = {"arch": "../own/net.py:Net", "metrics": ["accuracy"]}
    with pytest.raises(UserError, match=r"runs only as its copy in record/code/experiment/; there is no .*net.py"):
        recorded_params(tmp_path, values, Consent(given=True))
    frozen = tmp_path / "record/code/experiment"
    frozen.mkdir(parents=True)
    (frozen / "net.py").touch()
    with pytest.raises(UserError, match=r"its own ../own/net.py will not run.*--trust"):
        recorded_params(tmp_path, values, Consent())
    params = recorded_params(tmp_path, values, Consent(given=True))
    assert (params.folder, params.arch) == (frozen, "net.py:Net")
    assert recorded_params(tmp_path, values, Consent()).folder == frozen, "once is enough"
    assert recorded_params(tmp_path, {"arch": "lenet"}, Consent()).folder == tmp_path


# --- predict --------------------------------------------------------------------------------------------


def test_predict_agrees_with_evaluate(world, tmp_path, capsys):
    table = tmp_path / "p.csv"
    arguments = ["--model_dir", world.folder, world.data / "test", "--top", 4, "--csv", table]
    assert predict.main([*map(str, arguments)]) == 0
    capsys.readouterr()
    expected = {row["path"]: row for row in read_csv(world.folder / "evaluation/predictions.csv")}
    rows = read_csv(table)
    assert list(rows[0]) == ["path", *(f"{k}_{n}" for n in range(1, 5) for k in ("label", "prob")), "error"]
    assert len(rows) == len(expected) == 100
    for row in rows:
        wanted = expected[os.path.relpath(row["path"], world.data)]
        assert row["label_1"] == wanted["predicted"]
        for rank in range(1, 5):
            assert float(row[f"prob_{rank}"]) == pytest.approx(float(wanted[f"prob_{row[f'label_{rank}']}"]), abs=1e-6)


def test_unreadable_and_oddly_named_files(world, tmp_path, capsys):
    good = next((world.data / "test/two").iterdir())
    odd = tmp_path / 'a, "b"\nc.png'
    shutil.copy(good, odd)
    shutil.copy(good, os.fsencode(tmp_path) + b"/\xff.png")
    (tmp_path / "broken.jpg").write_text("no image")
    (tmp_path / "notes.txt").write_text("not looked at")
    table = tmp_path / "out.csv"
    assert predict.main(["--model_dir", str(world.folder), str(tmp_path), "gone.png", "--csv", str(table)]) == 0
    assert "2 of 4 images could not be read" in capsys.readouterr().err
    rows = {row["path"]: row for row in read_csv(table)}
    assert rows[str(odd)]["error"] == ""
    assert rows[str(odd)]["label_1"]
    assert rows[str(tmp_path / "\udcff.png")]["prob_1"] == rows[str(odd)]["prob_1"]
    assert "not a JPEG" in rows[str(tmp_path / "broken.jpg")]["error"]
    assert rows["gone.png"]["error"]
    assert predict.main(["--model_dir", str(world.folder), "gone.png"]) == 2


def test_weights_alone_are_enough_to_predict(world, tmp_path):
    (tmp_path / "weights").mkdir()
    shutil.copy(world.folder / "weights/best.safetensors", tmp_path / "weights")
    image = next((world.data / "test/nought").iterdir())
    done = run("predict.py", "--model_dir", tmp_path, image, "--top", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:5] == ["path", "label_1", "prob_1", "label_2", "prob_2"]
    assert str(image) in done.stdout


def test_predict_refuses_what_makes_no_sense(world):
    for arguments, says in [
        (["x.png", "--top", "0"], "--top"),
        (["x.png", "--csv", "/no/such/folder/x.csv"], "--csv"),
        ([str(world.folder / "record")], "no images"),
        (["x.png", "--im_sz=3"], "--im_sz"),
    ]:
        with pytest.raises(UserError, match=says):
            predict.main(["--model_dir", str(world.folder), *arguments])
