"""Code that a folder brings runs only if this user sealed it, or after --trust. Every attack leaves a mark if it runs."""

import json
import os
import py_compile
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from kit import ROOT, call, experiment, make_dataset, shell, tree

from engine.checkpoint import read_weights, weights_file
from folder import trust
from folder.folder import Folder
from folder.manifest import seal as seal_record
from folder.provenance import changed_files, check_frozen_code, references, snapshot
from folder.trust import Consent, check_trust, make_key, read_key, seal, state_home
from utils import UserError, cache_home

NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, num_classes)
    def forward(self, x):
        return self.head(self.conv(x).relu().amax((2, 3)))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset; `plain`, trained, and `own`, which has a net of its own and is interrupted after its first epoch."""
    root = tmp_path_factory.mktemp("world")
    data = make_dataset(root / "data")
    experiment(root / "plain", num_epochs=1)
    experiment(root / "own", arch="net.py:Net", arch_args={}, num_epochs=2)
    (root / "own/net.py").write_text(NET)
    for name in ("plain", "own"):
        code, printed = call("train", "--data_dir", data, "--model_dir", root / name, "--until", 1)
        assert code == 0, printed
    return root


@pytest.fixture
def folders(world, tmp_path):
    """Copies of both, for one test to change."""
    for name in ("plain", "own"):
        shutil.copytree(world / name, tmp_path / name, symlinks=True)
    return tmp_path


@pytest.fixture
def stranger(tmp_path_factory, monkeypatch):
    """Another user, for whom these folders came from elsewhere."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("stranger")))


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "it ran"


def evil(mark: Path) -> str:
    return f"open({str(mark)!r}, 'w').close()\n"


def image(world):
    return world / "data/test/class_1/000.png"


def refusal(script: str, *argv: object) -> str:
    """The one line that a command is refused with."""
    code, printed = call(script, *argv)
    assert code in (2, 3), printed
    lines = [line for line in printed.splitlines() if "changed since the training" not in line]
    assert len(lines) == 1, printed
    return lines[0]


# --- the key --------------------------------------------------------------------------------------------------


def test_processes_that_need_a_key_at_once_get_the_same(tmp_path):
    program = "import sys; sys.path.insert(0, sys.argv[1]); from folder.trust import make_key; print(make_key().hex())"
    command = [sys.executable, "-B", "-c", program, str(ROOT)]
    environ = os.environ | {"XDG_STATE_HOME": str(tmp_path / "new/state")}
    started = [subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    keys = {process.communicate()[0] for process in started}
    assert len(keys) == 1
    assert len(keys.pop().strip()) == 64
    home = tmp_path / "new/state/experiment-folders"
    assert [path.name for path in home.iterdir()] == ["key"]
    assert stat.S_IMODE((home / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@pytest.mark.usefixtures("stranger")
def test_a_key_that_others_can_read_or_that_is_none_is_one_line():
    assert read_key() is None
    make_key()
    key = state_home() / "key"
    key.chmod(0o640)
    with pytest.raises(UserError, match=rf"must be yours alone: chmod 600 {key}"):
        read_key()
    key.chmod(0o600)
    key.write_bytes(b"short")
    with pytest.raises(UserError, match="no key of 32 bytes; remove it"):
        read_key()
    key.unlink()
    key.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_key()


# --- what names code ------------------------------------------------------------------------------------------


def point_weights_to(folder: Path, arch: str) -> None:
    """As who sends the folder can: the digests of its results, which hold no key, are made anew."""
    meta = folder / "record/meta.json"
    meta.write_text(
        json.dumps(seal_record({key: value for key, value in json.loads(meta.read_text()).items() if key != "done"}))
    )
    path = folder / "weights/best.safetensors"
    tensors, metadata = read_weights(path)
    path.write_bytes(weights_file(tensors, metadata | {"arch": arch}))


@pytest.mark.usefixtures("stranger")
def test_what_a_weights_file_names_runs_only_as_the_copy_that_is_trusted(folders, world, mark):
    folder = folders / "plain"
    file = folders / "evil.py"
    file.write_text(evil(mark) + NET)
    predict = ("predict", "--model_dir", folder, image(world))
    measure = ("evaluate", "--data_dir", world / "data", "--model_dir", folder)
    alone = ("evaluate", "--data_dir", world / "data", "--model_dir", world / "plain", "--restore_file")
    for arch in (f"{file}:Net", "../evil.py:Net", "evil.py:Net"):
        point_weights_to(folder, arch)
        for argv in (predict, measure, (*alone, folder / "weights/best.safetensors")):
            assert "which runs only as its copy in record/code/experiment/" in refusal(*argv)
    # as a copy it runs, too, but not untold
    copy = folder / "record/code/experiment/evil.py"
    copy.parent.mkdir()
    shutil.copy(file, copy)
    for argv in (predict, measure):
        line = refusal(*argv)
        assert "its own evil.py will not run" in line
        assert line.endswith("--trust")
    assert not mark.exists()
    # a link out of the folder is no copy
    copy.unlink()
    copy.symlink_to(file)
    assert "is a link" in refusal(*predict, "--trust")
    copy.unlink()
    copy.parent.rmdir()
    copy.parent.symlink_to(folders)
    assert "is a link" in refusal(*predict, "--trust")
    assert not mark.exists()


def test_the_way_out_says_what_will_run_and_is_needed_once(folders, world, monkeypatch, tmp_path):
    folder = folders / "own"
    argv = ("predict", "--model_dir", folder, image(world))
    assert call(*argv)[0] == 0, "whoever trained it is not asked, wherever it was copied to"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "laptop"))
    before = tree(folder)
    line = refusal(*argv)
    assert tree(folder) == before
    pasted = line.split("run it with: ")[1].split()
    assert pasted[:2] == ["python", "predict.py"]
    done = subprocess.run([sys.executable, ROOT / pasted[1], *pasted[2:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"trusted from now on: {folder}/record/code" in done.stderr
    assert "the experiment's own: experiment/net.py" in done.stderr
    code, printed = call(*argv)
    assert code == 0
    assert "trust" not in printed
    monkeypatch.undo()
    assert call(*argv)[0] == 0, "the seal of the one who trained it stays"


def test_a_file_that_changed_since_it_was_sealed_is_named(folders, world, mark):
    folder = folders / "own"
    net = folder / "record/code/experiment/net.py"
    net.write_text(NET + evil(mark))
    assert "changed in record/code since you sealed it: experiment/net.py." in refusal(
        "predict", "--model_dir", folder, image(world)
    )
    plain = folders / "plain"
    (plain / "record/code/sitecustomize.py").write_text(evil(mark))
    line = refusal("evaluate", "--data_dir", world / "data", "--model_dir", plain, "--code", "folder")
    assert "since you sealed it: sitecustomize.py." in line
    assert not mark.exists()


@pytest.mark.parametrize(
    "record", ["", "{", "[]", '{"files": {}, "seals": {"x": 3}}', '{"files": {"a": 1}, "seals": []}']
)
def test_a_damaged_or_forged_seal_is_none(folders, world, record, mark):
    folder = folders / "own"
    (folder / "record/code/experiment/net.py").write_text(NET + evil(mark))
    (folder / "record/trust.json").write_text(record)
    assert "no seal with your key" in refusal("predict", "--model_dir", folder, image(world))
    digest = trust.digest_code(trust.list_code(folder / "record/code"))
    for macs in ([3, None, "0" * 64, "\u00e9", "\ud800"], 3, {"a": 1}, "0" * 64):
        (folder / "record/trust.json").write_text(json.dumps({"files": {}, "seals": {digest: macs}}))
        assert "no seal with your key" in refusal("predict", "--model_dir", folder, image(world))
    assert not mark.exists()


# --- a frozen kit is code, too --------------------------------------------------------------------------------


def frozen_commands(world, folder):
    data = ("--data_dir", world / "data", "--model_dir", folder)
    return [
        ("evaluate", *data, "--code", "folder"),
        ("predict", "--model_dir", folder, image(world), "--code", "folder"),
        ("export", "--model_dir", folder, "--format", "safetensors", "--code", "folder"),
        ("train", *data, "--code", "folder"),
        ("train", *data, "--verify"),
    ]


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize("name", ["engine/loop.py", "include.py"])
def test_a_strangers_frozen_kit_does_not_run_untold(folders, world, mark, name):
    folder = folders / "plain"
    path = folder / "record/code" / name
    path.write_text(path.read_text() + evil(mark))
    for argv in frozen_commands(world, folder):
        assert "its frozen code will not run" in refusal(*argv)
    assert not mark.exists()
    assert call("evaluate", "--data_dir", world / "data", "--model_dir", folder, "--code", "tree")[0] == 0
    assert not mark.exists()


def test_what_python_compiled_earlier_does_not_run_in_place_of_what_is_sealed(folders, world, mark):
    """A .pyc counts as up to date when it names the time and the length of its source: both can be forged."""

    def forge(source: Path) -> None:
        cache = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
        text, times = source.read_text(), (source.stat().st_atime, source.stat().st_mtime)
        size = len(text.encode())
        wicked = (evil(mark) + text).encode()
        source.write_bytes(wicked)
        os.utime(source, times)
        py_compile.compile(str(source), str(cache))
        source.write_text(text)
        os.utime(source, times)
        header = bytearray(cache.read_bytes())
        header[12:16] = size.to_bytes(4, "little")
        cache.write_bytes(header)

    forge(folders / "plain/record/code/include.py")
    done = shell("predict", "--model_dir", folders / "plain", image(world), "--code", "folder")
    assert done.returncode == 0, done.stderr
    assert not mark.exists()
    forge(folders / "own/record/code/experiment/net.py")
    forge(folders / "own/net.py")
    assert call("predict", "--model_dir", folders / "own", image(world))[0] == 0
    assert call("train", "--data_dir", world / "data", "--model_dir", folders / "own")[0] == 0
    assert not mark.exists()


@pytest.mark.usefixtures("stranger")
def test_names_cannot_hide_each_other_on_the_terminal(folders):
    (folders / "plain/record/code/evil.py\r\x1b[2K.py").touch()
    said = []
    check_trust(folders / "plain", "its frozen code", Consent(given=True, say=said.append))
    assert r"'evil.py\r\x1b[2K.py'" in said[0]
    assert "\x1b" not in said[0]


def test_compiled_files_that_cannot_be_removed_are_not_read(folders, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "")
    code = folders / "plain/record/code"
    check_frozen_code(folders / "plain", Consent())
    assert not os.environ["PYTHONPYCACHEPREFIX"]
    (code / "engine/__pycache__").mkdir()
    check_frozen_code(folders / "plain", Consent())
    assert os.environ["PYTHONPYCACHEPREFIX"] == str(cache_home() / "compiled")


def test_two_files_of_its_own_may_not_have_the_same_name(tmp_path, world):
    """record/code/experiment/ keeps one of each name."""
    folder = experiment(tmp_path / "m", arch="a/net.py:Net", arch_args={}, metrics=["b/net.py:metric"])
    assert "two files are called net.py: a/net.py and b/net.py" in refusal(
        "train", "--data_dir", world / "data", "--model_dir", folder
    )
    assert [path.name for path in folder.iterdir()] == ["params.json"]
    assert references({"arch": "net.py:Net", "loss": "./net.py:loss"}) == {"net.py", "./net.py"}


# --- a training that goes on ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize("attack", ["both", "no copy", "half a copy"])
def test_a_strangers_interrupted_folder_is_not_continued_untold(folders, world, mark, attack):
    folder = folders / "own"
    (folder / "net.py").write_text(NET + evil(mark))
    shutil.copy(folder / "net.py", folder / "record/code/experiment/net.py")
    if attack == "no copy":
        shutil.rmtree(folder / "record/code")
    if attack == "half a copy":
        (folder / "record/code").rename(folder / "record/.code")
    argv = ("train", "--data_dir", world / "data", "--model_dir", folder)
    before = tree(folder)
    for flags in ((), ("--accept", "code"), ("--accept", "params", "--ps=0.1"), ("--find_lr",)):
        line = refusal(*argv, *flags)
        assert "its own net.py will not run" in line, line
        assert line.endswith("--trust")
    assert not mark.exists()
    assert tree(folder) == before
    code, printed = call(*argv, "--trust")
    assert code == 0, printed
    assert mark.exists()
    assert call("predict", "--model_dir", folder, image(world))[0] == 0, "what it ran is now its own"


def test_my_seal_does_not_cover_another_net_beside_it(folders, world, mark):
    """What runs is net.py of the folder: it has to be the sealed one, also where the copy was about to get its name."""
    folder = folders / "own"
    (folder / "net.py").write_text(NET + evil(mark))
    for name in ("code", ".code"):
        line = refusal("train", "--data_dir", world / "data", "--model_dir", folder)
        assert "the code changed since this run began: net.py" in line
        (folder / "record/code").rename(folder / "record" / f".{name}") if name == "code" else None
    assert not mark.exists()


def test_a_kill_while_the_copy_is_written_leaves_a_folder_that_asks_nothing(tmp_path, monkeypatch):
    folder = Folder(experiment(tmp_path / "m"))
    snapshot(folder, {})
    (folder.path / "record/code/train.py").write_text("ADDED = 1\n")
    seal(folder.path, folder.path / "record/code")
    rename = Path.rename
    for survived in (0, 1):  # renames that still happen
        copy = Folder(tmp_path / f"copy {survived}")
        shutil.copytree(folder.path, copy.path)
        left = iter(range(survived))

        def stop(self, target, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            snapshot(copy, {})
        monkeypatch.undo()
        check_trust(copy.path, "its own net.py", Consent())
        snapshot(copy, {})
        check_trust(copy.path, "its own net.py", Consent())
        assert changed_files(copy, {}) == []


def test_where_the_folder_cannot_be_written_the_digest_is_kept_with_the_key(folders, world, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    folder = folders / "own"
    before = tree(folder)

    def refuse(path, value):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(trust, "write_json", refuse)
    argv = ("predict", "--model_dir", folder, image(world))
    assert call(*argv, "--trust")[0] == 0
    assert tree(folder) == before
    assert call(*argv)[0] == 0
    (folder / "record/code/experiment/net.py").write_text(NET + "\n")
    assert "since you sealed it: experiment/net.py" in refusal(*argv)


def test_a_training_without_a_place_for_the_key_goes_on(world, tmp_path):
    """A machine without a home: nothing is sealed, which is said; a net of the kit's own needs no seal."""
    (tmp_path / "file").touch()
    folder = experiment(tmp_path / "m", num_epochs=1)
    flags = ("--data_dir", world / "data", "--model_dir", folder)
    done = shell("train", *flags, XDG_STATE_HOME=str(tmp_path / "file"))
    assert done.returncode == 0, done.stderr
    assert "cannot be sealed as yours; --trust will be asked for later" in done.stdout
    assert shell("train", *flags, "--num_epochs=2", XDG_STATE_HOME=str(tmp_path / "file")).returncode == 0


# --- a search -------------------------------------------------------------------------------------------------


def test_a_strangers_search_does_not_run_untold_and_ones_own_asks_nothing(world, tmp_path, mark, monkeypatch):
    parent = experiment(tmp_path / "s", arch="net.py:Net", arch_args={}, num_epochs=2, hyper_search={"wd": [0.1, 0.2]})
    (parent / "net.py").write_text(NET)
    argv = ("--data_dir", world / "data", "--parent_dir", parent)
    done = shell("search_hyperparams", *argv)
    assert done.returncode == 0, done.stdout + done.stderr
    # one child is paused, as after a kill: it goes on without a question, its net is the parent's frozen one
    child = parent / "wd_0.1"
    shutil.rmtree(child)
    frozen = ("--data_dir", world / "data", "--model_dir", child)
    assert call("search_hyperparams", *argv, "--dry_run")[0] == 0
    pause = [sys.executable, parent / "record/code/train.py", *map(str, frozen), "--until", "1"]
    assert subprocess.run(pause, capture_output=True).returncode == 0
    (child / "record/trust.json").unlink()
    done = shell("search_hyperparams", *argv)
    assert done.returncode == 0, done.stdout + done.stderr
    # another user
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    loop = parent / "record/code/engine/loop.py"
    loop.write_text(loop.read_text() + evil(mark))
    shutil.rmtree(child)
    line = refusal("search_hyperparams", *argv)
    assert "its frozen code will not run" in line
    assert not mark.exists()
    done = shell("search_hyperparams", *argv, "--trust")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "engine/loop.py" in done.stdout
    assert mark.exists()


def test_a_search_that_looks_at_moved_data_runs_no_strangers_code_for_it(world, tmp_path, mark, monkeypatch):
    """Its dataset is of a file of its own, which would be read to compare the data with that of the children."""
    parent = experiment(tmp_path / "s", dataset="mine.py:make", num_epochs=1, hyper_search={"wd": [0.1]})
    (parent / "mine.py").write_text("from model.images.image_folder import image_folder as make\n")
    done = shell("search_hyperparams", "--data_dir", world / "data", "--parent_dir", parent)
    assert done.returncode == 0, done.stdout + done.stderr
    moved = shutil.copytree(world / "data", tmp_path / "moved")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    copy = parent / "record/code/experiment/mine.py"
    copy.write_text(copy.read_text() + evil(mark))
    line = refusal("search_hyperparams", "--data_dir", moved, "--parent_dir", parent)
    assert "will not run" in line
    assert not mark.exists()


# --- weights of another experiment ------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["predict", "evaluate", "export"])
def test_weights_of_another_experiments_own_net_do_not_run_through_the_net_of_this_one(folders, world, script):
    """Both are called net.py:Net, and the tensors fit."""
    other = experiment(folders / "other", arch="net.py:Net", arch_args={}, num_epochs=1, seed=5)
    (other / "net.py").write_text(NET.replace(".relu()", ".tanh()"))
    assert call("train", "--data_dir", world / "data", "--model_dir", other)[0] == 0
    argv = {"predict": [image(world)], "evaluate": ["--data_dir", world / "data"], "export": ["--format=torch"]}[script]
    before = tree(folders / "own")
    weights = other / "weights/last.safetensors"
    line = refusal(script, "--model_dir", folders / "own", "--restore_file", weights, *argv)
    assert "these weights were made with another net.py" in line
    assert tree(folders / "own") == before
    # the way out
    pasted = shlex.split(line.split("With their own: ")[1])
    assert pasted == ["--model_dir", str(other), "--restore_file", "last"]
    assert call(script, *pasted, *argv)[0] == 0
    # the same code, with another layout: the weights are used
    frozen = folders / "own/record/code/experiment/net.py"
    (other / "record/code/experiment/net.py").write_text("# a remark\n" + frozen.read_text())
    assert call(script, "--model_dir", folders / "own", "--restore_file", weights, *argv)[0] == 0
    # without their code: said
    alone = shutil.copy(weights, folders / "alone.safetensors")
    code, printed = call(script, "--model_dir", folders / "own", "--restore_file", alone, *argv)
    assert code == 0, printed
    assert "the net.py that made these weights is not beside them" in printed
