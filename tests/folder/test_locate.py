"""Where data and weights are looked for, and in which order."""

import json
from pathlib import Path

import pytest

import params as params_module
from folder.folder import Folder
from folder.locate import find_data, find_trained_data, find_trained_weights, find_weights, weights_name
from utils import UserError


@pytest.fixture
def folder(tmp_path):
    """An experiment folder with best and last weights that was trained with /data/old."""
    path = tmp_path / "experiment"
    (path / "record").mkdir(parents=True)
    (path / "weights").mkdir()
    for which in ("best", "last"):
        (path / "weights" / f"{which}.safetensors").write_bytes(b"")
    meta = {"overrides": {}, "data": {}, "sessions": [], "data_dir": "/data/old", "restore_file": None}
    (path / "record/meta.json").write_text(json.dumps(meta | {"minimize": None}))
    return Folder(path)


def load_params(path, **values):
    path.mkdir(exist_ok=True)
    (path / "params.json").write_text(json.dumps(values))
    return params_module.load(path)


def test_the_command_line_comes_before_params_json_and_that_before_what_is_remembered(tmp_path):
    silent, stated = load_params(tmp_path / "a"), load_params(tmp_path / "b", data_dir="../digits")
    assert find_data("given", stated, "/data/old") == Path("given")
    assert find_data(None, stated, "/data/old") == tmp_path / "b/../digits"
    assert find_data(None, silent, "/data/old") == Path("/data/old")
    with pytest.raises(UserError, match="no data: give --data_dir DATA"):
        find_data(None, silent, None)


def test_a_trained_folder_remembers_its_data(folder, tmp_path):
    assert find_trained_data(folder, "given") == Path("given")
    assert find_trained_data(folder, None) == Path("/data/old")
    with pytest.raises(UserError, match="does not say where the data is: give --data_dir DATA"):
        find_trained_data(Folder(tmp_path), None)


def test_weights_are_best_last_a_file_or_those_of_another_folder(folder, tmp_path):
    best, last = folder.weights("best"), folder.weights("last")
    assert find_weights(folder, "best") == best
    assert find_weights(folder, "last") == last
    assert find_weights(Folder(tmp_path), str(last)) == last
    assert find_weights(Folder(tmp_path), str(folder.path)) == best
    for name in ("best", "lst", str(tmp_path)):
        with pytest.raises(UserError, match="no such weights file; possible: best, last, a file, or an experiment"):
            find_weights(Folder(tmp_path), name)
    assert [weights_name(name) for name in ("best", "last", "x/mine.safetensors")] == ["best", "last", "mine"]


def test_a_folder_without_weights_says_how_to_get_them(folder, tmp_path):
    assert find_trained_weights(folder, "last") == folder.weights("last")
    with pytest.raises(UserError, match="no such experiment folder"):
        find_trained_weights(Folder(tmp_path / "nowhere"), "best")
    with pytest.raises(UserError, match="has not been trained yet: python train.py"):
        find_trained_weights(Folder(tmp_path), "best")
    pinned = {name: {} for name in ("data", "machine", "choice", "automatic")}
    pinned |= {"classes": [], "mean": [], "std": [], "im_sz": 8}
    resolved = {"arch": "lenet", "arch_args": {}, "im_sz": 8, "n_clas": 2, "best_metric": "accuracy", "num_epochs": 2}
    (folder.path / "record/resolved.json").write_text(json.dumps(resolved | {"pinned": pinned}))
    folder.weights("last").unlink()
    command = f"continue with python train.py --model_dir {folder.path}$"
    with pytest.raises(UserError, match=f"no epoch has finished yet; {command}"):
        find_trained_weights(folder, "last")
