"""export.py: the exported folder names the same classes as the kit, by itself and for whatever images people have."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kit import call, experiment, make_dataset, tree
from odd_images import write_odd_images
from PIL import Image

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

# Nothing of the kit can be imported by the program, and torch neither.
ALONE = """
import json, sys
class Barrier:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "engine", "model", "utils", "folder"):
            raise ImportError(f"{name} is not to be had here")
sys.meta_path.insert(0, Barrier())
sys.path.insert(0, sys.argv[1])
from predict import load
net = load()
print(json.dumps([r if isinstance(r, dict) else str(r) for r in net(json.load(sys.stdin))]))
"""


def run_alone(export: Path, files: list[str]) -> list:
    """What the exported predict.py says of `files`, in a process that cannot import torch or the kit."""
    run = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(export)],
        input=json.dumps(files),
        capture_output=True,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"]},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "colours", per_class=24, side=40)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data) -> Path:
    """A net that is far from sure and far from constant, so that other pixels give other probabilities."""
    folder = experiment(tmp_path_factory.mktemp("export") / "run", im_sz=72, num_epochs=4, learning_rate=0.1)
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    return folder


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> list[str]:
    return [str(path) for path in write_odd_images(tmp_path_factory.mktemp("odd"))]


def kit_probabilities(folder: Path, files: list[str]) -> list[dict[str, float]]:
    code, out = call("predict", "--model_dir", folder, "--top", 3, "--json", *files)
    assert code == 0
    rows = json.loads(out[out.index("{") :])["rows"]
    return [{row[f"label_{k}"]: row[f"prob_{k}"] for k in (1, 2, 3)} for row in rows]


@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
def test_the_exported_folder_alone_gives_the_same_classes_and_probabilities(tmp_path, data, odd, resize):
    folder = experiment(tmp_path / "run", im_sz=72, num_epochs=4, learning_rate=0.1, resize=resize)
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    assert call("export", folder, "--out", tmp_path / "out")[0] == 0
    moved = Path(shutil.move(tmp_path / "out", tmp_path / "elsewhere"))
    expected = kit_probabilities(folder, odd)
    assert len({round(values["class_0"], 5) for values in expected}) > 12  # the images can be told apart
    for file, alone, kit in zip(odd, run_alone(moved, odd), expected, strict=True):
        assert next(iter(alone)) == next(iter(kit)), file
        assert all(abs(alone[name] - kit[name]) < 1e-3 for name in kit), (file, alone, kit)


def test_what_is_written(trained, tmp_path, data):
    assert call("evaluate", "--data_dir", data, "--model_dir", trained)[0] == 0
    code, out = call("export", trained, "--out", tmp_path / "out")
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "labels.txt", "model.onnx", "model_card.md", "parity.json", "predict.py",
    ]  # fmt: skip
    parity = json.loads((tmp_path / "out/parity.json").read_text())
    assert parity["images"] == parity["same_class"] == 72
    assert 0 < parity["max_difference"] < 1e-3
    card = (tmp_path / "out/model_card.md").read_text()
    assert "class_0, class_1, class_2" in card
    assert "Looks at the test set so far: 1." in card
    assert "to be stated by the author" in card
    accuracy = json.loads((trained / "metrics_test_best.json").read_text())["accuracy"]
    assert f"| test    | accuracy | {accuracy:.4f}" in card
    assert (tmp_path / "out/predict.py").read_text().count("\n") <= 40
    assert "on 72 validation images" in out.lower()


def test_images_of_equal_size_go_through_in_one_batch(trained, tmp_path):
    assert call("export", trained, "--out", tmp_path / "out")[0] == 0
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (5, 50, 90, 3), dtype=np.uint8)
    together = session.run(None, {"image": images})[0]
    single = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])
    assert together.shape == (5, 3)
    np.testing.assert_allclose(together, single, atol=1e-6)
    np.testing.assert_allclose(together.sum(1), 1, atol=1e-5)


def test_a_list_with_an_unreadable_file_and_every_kind_of_image(trained, tmp_path):
    assert call("export", trained, "--out", tmp_path / "out")[0] == 0
    (tmp_path / "text.jpg").write_text("no image")
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(picture)
    good, bad, missing = run_alone(tmp_path / "out", [str(picture), str(tmp_path / "text.jpg"), "/nowhere.png"])
    assert set(good) == {"class_0", "class_1", "class_2"}
    assert "cannot identify" in bad
    assert "No such file" in missing


def test_int8_is_measured_on_valid(trained, tmp_path):
    code, out = call("export", trained, "--int8", "--out", tmp_path / "out")
    assert code == 0, out
    parity = json.loads((tmp_path / "out/parity.json").read_text())
    assert parity["form"] == "onnx, int8"
    assert parity["images"] == 72
    assert parity["exported_accuracy"] >= parity["accuracy"] - 0.1
    size8 = (tmp_path / "out/model.onnx").stat().st_size
    names = {node.op_type for node in __import__("onnx").load(tmp_path / "out/model.onnx").graph.node}
    assert "QuantizeLinear" in names
    assert size8 > 0


def test_torch_and_safetensors(trained, tmp_path, odd):
    import torch
    from safetensors.torch import load_file

    assert call("export", trained, "--format", "torch", "--out", tmp_path / "pt")[0] == 0
    net = torch.export.load(tmp_path / "pt/model.pt2").module()
    with torch.inference_mode():
        assert net(torch.zeros(5, 82, 82, 3, dtype=torch.uint8)).shape == (5, 3)
    assert json.loads((tmp_path / "pt/parity.json").read_text())["max_difference"] < 1e-5
    assert call("export", trained, "--format", "safetensors", "--out", tmp_path / "st")[0] == 0
    assert load_file(tmp_path / "st/model.safetensors").keys() == load_file(trained / "weights/best.safetensors").keys()


def test_an_older_export_is_replaced_and_other_files_are_not(trained, tmp_path):
    out = tmp_path / "out"
    assert call("export", trained, "--out", out)[0] == 0
    assert call("export", trained, "--format", "safetensors", "--out", out)[0] == 0
    assert not (out / "model.onnx").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    before = tree(mine)
    code, message = call("export", trained, "--out", mine)
    assert code == 2
    assert "holds other files" in message
    assert tree(mine) == before
    assert not list(tmp_path.glob(".*"))


def test_without_the_data_it_exports_and_says_that_nothing_was_compared(trained, tmp_path, data):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    hidden = data.with_name("hidden")
    data.rename(hidden)
    try:
        code, out = call("export", folder, "--out", tmp_path / "out")
        assert code == 0
        assert "Not compared" in out
        code, out = call("export", folder, "--int8", "--out", tmp_path / "out8")
        assert code == 2
        assert "--data_dir" in out
    finally:
        hidden.rename(data)


def test_mistakes(trained, tmp_path, monkeypatch):
    code, out = call("export", trained, "--int8", "--format", "torch")
    assert (code, "--int8 is for --format onnx" in out) == (2, True)
    code, out = call("export", experiment(tmp_path / "fresh"))
    assert (code, "has not been trained yet" in out) == (2, True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    code, out = call("export", trained)
    assert (code, "pip install onnx onnxruntime onnxscript" in out) == (2, True)
