"""Where the weights come from that a folder starts from, as a user gives them: paths, folders, copies, changed files."""

import json
import shutil

import pytest
import torch
from kit import call, experiment, history, tree, weights

from engine.use.published import Shelf


@pytest.fixture
def trained(train, tmp_path):
    """A folder that has been trained for one epoch."""
    code, _ = train(experiment(tmp_path / "trained", num_epochs=1))
    assert code == 0
    return tmp_path / "trained"


def resolved(folder):
    return json.loads((folder / "record/resolved.json").read_text())


def meta(folder):
    return json.loads((folder / "record/meta.json").read_text())


def test_weights_that_do_not_fit_leave_the_folder_as_it_was(train, trained, tmp_path):
    for flag in ("--pretrain=trained", "--restore_file=trained"):
        folder = experiment(tmp_path / "new", arch_args={"n_filters": 8})
        before = tree(folder)
        code, output = train(folder, flag.replace("trained", str(trained)))
        assert code == 2
        assert "names are those of simple_cnn, the sizes are not" in output
        assert output.count("\n") == 1
        assert tree(folder) == before


def test_a_path_on_the_command_line_is_the_shells_and_is_recorded_for_the_folder(train, trained, tmp_path, monkeypatch):
    shell = tmp_path / "shell"
    shell.mkdir()
    shutil.copy(trained / "weights/last.safetensors", shell / "w.safetensors")
    folder = experiment(tmp_path / "deep" / "new", num_epochs=2)
    monkeypatch.chdir(shell)
    code, output = train(folder, "--pretrain=w.safetensors", "--until", 1)
    assert code == 0
    assert "38 of the net's 38 tensors loaded" in output
    assert resolved(folder)["pretrain"] == "../../shell/w.safetensors"
    assert meta(folder)["overrides"]["pretrain"] == "../../shell/w.safetensors"
    # From elsewhere, the folder goes on with what it recorded, and does not need the file any more.
    monkeypatch.chdir(tmp_path)
    (shell / "w.safetensors").unlink()
    assert train(folder)[0] == 0
    # What is not in the shell's folder is looked for in the experiment.
    other = experiment(tmp_path / "other", num_epochs=1)
    shutil.copy(trained / "weights/last.safetensors", other / "own.safetensors")
    assert train(other, "--pretrain=own.safetensors")[0] == 0
    assert resolved(other)["pretrain"] == "own.safetensors"


def test_a_search_takes_paths_of_the_shell_too(data, trained, tmp_path, monkeypatch):
    parent = experiment(tmp_path / "deep" / "parent", num_epochs=1, hyper_search={"wd": [0.0, 0.1]})
    monkeypatch.chdir(tmp_path)
    code, _ = call("search_hyperparams", "--data_dir", data, "--parent_dir", parent, "--pretrain=trained", "--dry_run")
    assert code == 0
    child = json.loads((parent / "wd_0.0" / "params.json").read_text())
    assert (parent / "wd_0.0" / child["pretrain"]).resolve() == trained.resolve()


def test_an_experiment_folder_stands_for_its_best_weights(train, trained, tmp_path):
    folder = experiment(tmp_path / "new", num_epochs=1, pretrain="../trained")
    code, output = train(folder)
    assert code == 0
    assert "trained/weights/best.safetensors: 38 of the net's 38 tensors loaded" in output
    assert resolved(folder)["pretrain"] == "../trained"
    same = experiment(tmp_path / "same", num_epochs=1, pretrain="../trained/weights/best.safetensors")
    train(same)
    assert weights(folder) == weights(same)
    # A folder whose name could be a tag, beside params.json.
    shutil.copytree(trained, tmp_path / "third" / "inner")
    code, output = train(experiment(tmp_path / "third", num_epochs=1, pretrain="inner"))
    assert code == 0
    assert resolved(tmp_path / "third")["pretrain"] == "./inner"
    # One without weights, and one whose weights were damaged.
    code, output = train(experiment(tmp_path / "no", pretrain=str(experiment(tmp_path / "empty"))))
    assert code == 2
    assert "holds no weights/best.safetensors; train it: python train.py" in output
    (trained / "weights/best.safetensors").write_bytes(b"x")
    code, output = train(experiment(tmp_path / "late", pretrain="../trained"))
    assert code == 3
    assert "is not what the run wrote" in output


def test_the_folder_records_its_weights_and_a_changed_file_changes_no_run(train, trained, tmp_path):
    file = tmp_path / "w.safetensors"
    shutil.copy(trained / "weights/last.safetensors", file)
    whole = experiment(tmp_path / "whole", pretrain="../w.safetensors", num_epochs=2)
    assert train(whole)[0] == 0
    parts = experiment(tmp_path / "parts", pretrain="../w.safetensors", num_epochs=2)
    assert train(parts, "--until", 1)[0] == 0
    began = meta(parts)["pretrained"]
    assert began["loaded"] == "38 of 38 tensors"
    assert began["sha256"] == meta(whole)["pretrained"]["sha256"]
    torch.save({}, file)
    assert train(parts)[0] == 0
    assert meta(parts)["pretrained"] == began
    assert weights(parts) == weights(whole)
    assert history(parts) == history(whole)


def test_verify_finds_the_weights_and_says_that_they_changed(train, trained, tmp_path):
    file = tmp_path / "w.safetensors"
    shutil.copy(trained / "weights/last.safetensors", file)
    folder = experiment(tmp_path / "new", pretrain="../w.safetensors", num_epochs=1)
    assert train(folder)[0] == 0
    code, output = train(folder, "--verify")
    assert code == 0, output
    other = experiment(tmp_path / "other", num_epochs=1, seed=5)
    assert train(other)[0] == 0
    shutil.copy(other / "weights/last.safetensors", file)
    code, output = train(folder, "--verify")
    assert code == 3
    assert "w.safetensors, which it began with, has another content now" in output


def test_prepare_keeps_published_weights_so_that_no_network_is_needed(train, data, tmp_path, monkeypatch):
    from torchvision.models import ResNet18_Weights, resnet18

    # The machine with a network: here torch's own cache has the weights.
    home = tmp_path / "home"
    (home / "hub/checkpoints").mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(home))
    torch.save(resnet18().state_dict(), home / "hub/checkpoints" / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1])
    cache = tmp_path / "cache"
    folder = experiment(tmp_path / "new", arch="resnet18", arch_args={}, pretrain=1, im_sz=32, num_epochs=1)
    before = tree(folder)
    code, output = train(folder, "--prepare", "--cache_dir", cache)
    assert code == 0
    assert "ResNet18_Weights.IMAGENET1K_V1: 120 of the net's 122 tensors loaded" in output
    assert tree(folder) == before
    # The one without.
    shutil.rmtree(home)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: 1 / 0)
    code, output = train(folder, "--cache_dir", cache)
    assert code == 0
    assert "ResNet18_Weights.IMAGENET1K_V1: 120 of" in output
    assert Shelf(cache / "weights").find("ResNet18_Weights.IMAGENET1K_V1")
    code, output = train(experiment(tmp_path / "b", arch="resnet18", arch_args={}, pretrain=1), "--cache_dir", tmp_path)
    assert code == 2
    assert "could not be read" in output
