"""predict.py and its load(): a trained net as a function, whatever the images come as and wherever Python runs."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kit import ROOT, call, experiment, make_dataset
from PIL import Image

from predict import load
from utils import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "colours", per_class=16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    folder = experiment(tmp_path_factory.mktemp("predict") / "run", im_sz=16)
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    return folder


def rows_of(*words, **kwargs) -> list[dict]:
    code, out = call("predict", *words, "--json")
    assert code == 0, out
    return json.loads(out[out.index("{") :])["rows"]


def test_load_gives_what_predict_prints_for_every_form_of_an_image(trained, data):
    path = data / "test/class_1/000.png"
    (row,) = rows_of("--model_dir", trained, path, "--top", 3)
    net = load(trained)
    expected = {row[f"label_{k}"]: row[f"prob_{k}"] for k in (1, 2, 3)}
    assert net(path) == net(str(path)) == net(path.read_bytes()) == expected
    assert net(Image.open(path)) == net(np.array(Image.open(path))) == expected
    assert list(net(path)) == list(expected)  # the likeliest first
    assert sum(net(path).values()) == pytest.approx(1)


def test_in_a_list_an_unreadable_image_is_reported_and_the_others_are_classified(trained, data, tmp_path):
    good = [str(path) for path in sorted((data / "test").rglob("*.png"))]
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    images = [*good[:7], str(tmp_path / "bad.jpg"), *good[7:], b"nothing", np.zeros((2, 2)), 5]
    net = load(trained)
    results = net(images)
    errors = [number for number, result in enumerate(results) if isinstance(result, UserError)]
    assert errors == [7, len(images) - 3, len(images) - 2, len(images) - 1]
    alone = [net(image) for image in good[:7]]
    for together, single in zip(results[:7], alone, strict=True):
        assert not isinstance(together, UserError)
        assert together.keys() == single.keys()
        assert all(together[name] == pytest.approx(single[name], abs=1e-6) for name in single)
    with pytest.raises(UserError, match="bad.jpg"):
        net(str(tmp_path / "bad.jpg"))
    assert net([]) == []


def test_of_a_thousand_images_those_that_cannot_be_read_are_reported(trained, data, tmp_path):
    source = sorted((data / "test").rglob("*.png"))
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(1000):
        shutil.copyfile(source[number % len(source)], folder / f"{number:04}.png")
    whole = source[0].read_bytes()
    broken = {"0000.png": b"", "0255.png": whole[:60], "0256.png": b"text", "0999.png": whole[:-200]}
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    paths = [str(path) for path in sorted(folder.iterdir())]
    # by load()
    net = load(trained)
    assert net.preparation.batch_size == 256
    results = net(paths)
    assert {Path(path).name for path, of_it in zip(paths, results, strict=True) if isinstance(of_it, UserError)} == {
        *broken
    }
    # by predict.py, to a table: it exits with 0, since most could be read
    table = tmp_path / "table.csv"
    code, printed = call("predict", trained, folder, "--csv", table)
    assert code == 0
    assert "warning: 4 of 1000 images could not be read" in printed
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == paths
    for row, of_it in zip(rows, results, strict=True):
        if isinstance(of_it, UserError):
            assert str(of_it) == f"{row['path']}: {row['error']}"
            assert not row["label_1"]
        else:
            assert row["label_1"] == next(iter(of_it))
    # where none could be read, the exit code says so
    code, _ = call("predict", trained, *[folder / name for name in broken])
    assert code == 2


def test_three_lines_from_another_folder(trained, data, tmp_path):
    program = f"""import sys; sys.path.insert(0, {str(ROOT)!r})
from predict import load
print(load({str(trained)!r})({str(data / "test/class_2/001.png")!r}))"""
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("{'class_")


def test_changed_code_is_an_error_that_names_the_way_out(trained, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(trained, folder)
    frozen = folder / "record/code/model/net.py"
    frozen.write_text(frozen.read_text() + "\nCHANGED = 1\n")
    with pytest.raises(UserError, match='model/net.py changed since .* was trained: load.*code="tree"'):
        load(folder)
    assert load(folder, code="tree").classes == ["class_0", "class_1", "class_2"]


def test_load_refuses_parameters_of_the_net_and_untrained_folders(trained, tmp_path):
    with pytest.raises(UserError, match="--arch belongs to the trained net"):
        load(trained, arch="lenet")
    with pytest.raises(UserError, match="has not been trained yet"):
        load(experiment(tmp_path / "fresh"))


def test_the_experiment_as_a_word_or_a_weights_file(trained, data):
    image = data / "test/class_0/000.png"
    expected = rows_of("--model_dir", trained, image)
    assert rows_of(trained, image) == expected
    assert rows_of(trained / "weights/best.safetensors", image) == expected
    assert rows_of("--model_dir", trained / "weights/best.safetensors", image) == expected
    code, out = call("predict", image, image)
    assert (code, "give --model_dir EXPERIMENT" in out) == (2, True)
    code, out = call("predict", trained)
    assert (code, "which images?" in out) == (2, True)


def test_patterns_stdin_and_addresses(trained, data):
    names = [row["path"] for row in rows_of(trained, f"{data}/test/class_1/00*.png")]
    assert names == [f"{data}/test/class_1/00{k}.png" for k in range(10)]
    assert len(rows_of(trained, f"{data}/test/**/001.png")) == 3
    code, out = call("predict", trained, "https://example.org/cat.jpg")
    assert (code, "addresses are not fetched" in out) == (2, True)
    code, out = call("predict", trained, f"{data}/test/nothing*.png")
    assert (code, "no images found" in out) == (2, True)


@pytest.mark.parametrize("flags", [[], ["--code=folder"]])
def test_a_pattern_or_folder_without_images_is_told_like_a_missing_file(trained, data, tmp_path, flags):
    """Beside images it is a row with its reason, and exit 0; alone, exit 2."""
    image = data / "test/class_1/000.png"
    for word, shown in ((f"{data}/test/nothing*.png", f"{data}/test/nothing*.png"), (tmp_path, f"{tmp_path}/*")):
        code, out = call("predict", trained, image, word, "--json", *flags)
        assert code == 0, out
        rows = json.loads(out[out.index("{") : out.rindex("}") + 1])["rows"]
        assert [row["path"] for row in rows] == [str(image), shown]
        assert (rows[0]["error"], rows[1]["error"]) == ("", "No such file or directory")
        assert "1 of 2 images could not be read" in out
        code, out = call("predict", trained, "missing.png", word, "--json", *flags)
        assert (code, "2 of 2 images could not be read" in out) == (2, True)
    # what a pattern matches may hold folders without images
    (tmp_path / "notes").mkdir()
    shutil.copy(image, tmp_path / "a.png")
    assert [row["path"] for row in rows_of(trained, f"{tmp_path}/*")] == [f"{tmp_path}/a.png"]


def test_paths_from_stdin(trained, data, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(f"{data}/test/class_1/000.png\n\n{data}/test/class_2\n"))
    assert len(rows_of(trained, "-")) == 17


def test_a_file_whose_name_is_a_pattern_is_that_file(trained, data, tmp_path):
    shutil.copy(data / "test/class_0/000.png", tmp_path / "a[1].png")
    assert [row["path"] for row in rows_of(trained, tmp_path / "a[1].png")] == [str(tmp_path / "a[1].png")]


def test_all_classes(trained, data):
    (row,) = rows_of(trained, data / "test/class_0/000.png", "--top", 100)
    assert {row["label_1"], row["label_2"], row["label_3"]} == {"class_0", "class_1", "class_2"}
