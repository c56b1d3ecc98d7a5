"""Files that somebody prepared: whatever is in them, nothing of it runs, and nothing is written elsewhere."""

import io
import json
import os
import pickle
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import call, experiment, make_dataset, tree

from folder.manifest import read_manifest, seal
from utils import to_json


class Runs:
    """Pickles to a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class SetsState:
    """Pickles to an object whose state is set by a call."""

    def __init__(self, inner):
        self.inner = inner

    def __reduce__(self):
        return (dict, (), None, None, iter([("x", self.inner)]))


def calls(marker: Path) -> dict[str, Runs]:
    """Ways to make the folder `marker`, or to run code that would."""
    import builtins
    import functools
    import importlib
    import operator
    import runpy
    import subprocess
    import types

    name, code = str(marker), f"import os; os.mkdir({str(marker)!r})"
    return {
        "os.mkdir": Runs(os.mkdir, name),
        "os.system": Runs(os.system, f"mkdir '{name}'"),
        "os.makedirs": Runs(os.makedirs, name),
        "os.popen": Runs(os.popen, f"mkdir '{name}'"),
        "os.execvp": Runs(os.spawnlp, os.P_WAIT, "mkdir", "mkdir", name),
        "Popen": Runs(subprocess.Popen, ["mkdir", name]),
        "subprocess.run": Runs(subprocess.run, ["mkdir", name]),
        "check_output": Runs(subprocess.check_output, ["mkdir", name]),
        "eval": Runs(builtins.eval, f"__import__('os').mkdir({name!r})"),
        "exec": Runs(builtins.exec, code),
        "compile": Runs(builtins.map, builtins.exec, [code]),
        "Path.mkdir": Runs(Path.mkdir, marker),
        "shutil.copytree": Runs(shutil.copytree, str(marker.parent / "source"), name),
        "partial": Runs(functools.partial(os.mkdir, name)),
        "methodcaller": Runs(operator.methodcaller("mkdir"), marker),
        "import_module": Runs(importlib.import_module, "antigravity"),
        "run_path": Runs(runpy.run_path, str(marker.parent / "evil.py")),
        "pickle.loads": Runs(pickle.loads, pickle.dumps(Runs(os.mkdir, name))),
        "torch.load": Runs(functools.partial(torch.load, weights_only=False), str(marker.parent / "inner.pt")),
        "numpy.load": Runs(functools.partial(np.load, allow_pickle=True), str(marker.parent / "inner.npy")),
        "getattr": Runs(getattr, os, "mkdir"),
        "setattr": Runs(setattr, torch, "seed", os.mkdir),
        "FunctionType": Runs(types.SimpleNamespace),
    }


def payloads(folder: Path, marker: Path) -> dict[str, bytes]:
    """Over 40 files: each call in a zip of torch's, in a bare pickle, nested, as state; and containers of other kinds."""
    (folder / "evil.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    (folder / "source").mkdir()
    (folder / "inner.pt").write_bytes(pickle.dumps(Runs(os.mkdir, str(marker))))
    np.save(folder / "inner.npy", np.array([Runs(os.mkdir, str(marker))], dtype=object), allow_pickle=True)
    found: dict[str, bytes] = {}
    for name, value in calls(marker).items():
        for form, content in (("", value), (" as state", {"net": {"w": SetsState(value)}, "step": 1, "history": []})):
            buffer = io.BytesIO()
            try:
                torch.save(content, buffer)
            except Exception:  # what cannot even be pickled is no threat
                continue
            found[f"zip {name}{form}"] = buffer.getvalue()
        with __import__("contextlib").suppress(Exception):
            found[f"pickle {name}"] = pickle.dumps(value)
    legacy = io.BytesIO()
    torch.save({"w": calls(marker)["os.mkdir"]}, legacy, _use_new_zipfile_serialization=False)
    found["legacy"] = legacy.getvalue()
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    found["torchscript"] = script.getvalue()
    found["npy"] = (folder / "inner.npy").read_bytes()
    found["protocol 0"] = pickle.dumps(calls(marker)["os.mkdir"], protocol=0)
    return found


def test_no_payload_runs_wherever_weights_or_states_are_read(tmp_path):
    marker = tmp_path / "store" / "EXECUTED"
    marker.parent.mkdir()
    data = make_dataset(tmp_path / "data")
    done = experiment(tmp_path / "done", num_epochs=1)
    assert call("train", "--data_dir", data, "--model_dir", done)[0] == 0
    files = payloads(marker.parent, marker)
    assert len(files) >= 40, len(files)
    before = {str(path) for path in tmp_path.rglob("*")}
    assert not marker.exists()
    image = next((data / "test").rglob("*.png"))
    manifest = read_manifest(done / "checkpoints")
    state = done / "checkpoints" / manifest["last"]["file"]
    kept = state.read_bytes(), (done / "checkpoints/manifest.json").read_bytes()
    import hashlib

    for name, content in files.items():
        for suffix in (".pth", ".safetensors"):
            path = tmp_path / f"payload{suffix}"
            path.write_bytes(content)
            for argv in (
                ("train", "--data_dir", data, "--model_dir", new(tmp_path), "--restore_file", path),
                ("train", "--data_dir", data, "--model_dir", new(tmp_path), f"--pretrain={path}"),
                ("predict", "--model_dir", done, "--restore_file", path, image),
                ("evaluate", "--data_dir", data, "--model_dir", done, "--restore_file", path),
            ):
                code, printed = call(*argv)
                assert code in (2, 3), f"{name} {argv}: {code} {printed}"
                assert not marker.exists(), f"{name} ran: {argv}"
            path.unlink()
        # As a checkpoint, with a manifest that vouches for it.
        state.write_bytes(content)
        entry = manifest["last"] | {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        forged = manifest | {"last": entry, "best": entry, "epochs": [entry], "done": False}
        (done / "checkpoints/manifest.json").write_text(to_json(seal(forged)))
        code, printed = call("train", "--data_dir", data, "--model_dir", done)
        assert code == 3, f"{name}: {code} {printed}"
        assert "not a state that train.py wrote" in printed, f"{name}: {code} {printed}"
        assert not marker.exists(), f"{name} ran as a checkpoint"
        state.write_bytes(kept[0])
        (done / "checkpoints/manifest.json").write_bytes(kept[1])
    shutil.rmtree(tmp_path / "new")
    assert {str(path) for path in tmp_path.rglob("*")} <= before


def new(tmp_path: Path) -> Path:
    if not (tmp_path / "new").exists():
        experiment(tmp_path / "new")
    return tmp_path / "new"


# --- archives -------------------------------------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
    return info


TARS = {
    "dots": [member("../../OUT")],
    "dots inside": [member("a/../../../OUT")],
    "absolute": [member("/tmp/OUT_OF_THE_KIT")],
    "symlink out": [member("a", tarfile.SYMTYPE, "../.."), member("a/OUT")],
    "absolute symlink": [member("a", tarfile.SYMTYPE, "/tmp"), member("a/OUT_OF_THE_KIT")],
    "hard link out": [member("a", tarfile.LNKTYPE, "../../secret"), member("a")],
    "hard link to passwd": [member("train/x/passwd.png", tarfile.LNKTYPE, "/etc/passwd")],
    "symlink to passwd": [member("train/x/passwd.png", tarfile.SYMTYPE, "/etc/passwd")],
    "device": [member("null.png", tarfile.CHRTYPE)],
    "fifo": [member("train/x/pipe.png", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("name", TARS)
def test_nothing_of_a_hostile_tar_lands_outside(tmp_path, name):
    (tmp_path / "secret").write_text("secret")
    archive = tmp_path / "work" / "x.tar"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as tar:
        for info in TARS[name]:
            tar.addfile(info, io.BytesIO(b"evil"))
    look(tmp_path, archive)
    assert not Path("/tmp/OUT_OF_THE_KIT").exists()


def test_nothing_of_a_hostile_zip_lands_outside(tmp_path):
    archive = tmp_path / "work" / "x.zip"
    archive.parent.mkdir()
    link = zipfile.ZipInfo("train/x/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as file:
        for target in ("../../OUT", "/tmp/OUT_OF_THE_KIT", "a/../../../OUT", "..\\..\\OUT", "train/x/\u202egnp.exe"):
            file.writestr(target, b"evil")
        file.writestr(link, "/etc/passwd")
    look(tmp_path, archive)
    assert not Path("/tmp/OUT_OF_THE_KIT").exists()


def test_an_archive_that_cannot_be_read_is_one_line(tmp_path):
    """A compression nobody knows, and a password: zipfile has an error of another type for each."""
    for at, value in ((8, 99), (6, 1)):  # method, flags: offsets in the local header, two more in the central one
        archive = tmp_path / f"{at}.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("train/a/1.png", b"x")
        content = bytearray(archive.read_bytes())
        content[at] = content[content.index(b"PK\x01\x02") + at + 2] = value
        archive.write_bytes(content)
        code, printed = call("build_dataset", "--source", archive, "--data_dir", tmp_path / "data")
        assert code == 2, printed
        assert "cannot be unpacked" in printed, printed
        assert len(printed.strip().splitlines()) == 1, printed
        assert not (tmp_path / "data").exists()


def look(tmp_path: Path, archive: Path) -> None:
    """Build from the archive: refused, and nothing but the target is written; links to elsewhere are not followed."""
    before = tree(tmp_path)
    code, printed = call("build_dataset", "--source", archive, "--data_dir", archive.parent / "data")
    assert code in (2, 5), printed
    assert len(printed.strip().splitlines()) <= 3, printed
    after = {path: data for path, data in tree(tmp_path).items() if not path.startswith("work/data/")}
    assert after == before
    assert b"root:" not in b"".join(tree(archive.parent).values())


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path):
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(3):
            with file.open(f"train/a/{number}.png", "w", force_zip64=True) as entry:
                for _ in range(256):
                    entry.write(bytes(1 << 20))
    assert archive.stat().st_size < 1 << 20
    code, printed = call("build_dataset", "--source", archive, "--data_dir", tmp_path / "data")
    assert code == 2, printed
    assert "bomb" in printed.lower(), printed
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 300 << 20


# --- JSON -----------------------------------------------------------------------------------------------------

HOSTILE_JSON = {
    "nan": '{"learning_rate": NaN}',
    "infinity": '{"learning_rate": 1e999}',
    "deep": "[" * 100_000,
    "huge": '{"seed": ' + "9" * 5000 + "}",
    "bytes": "\ufffd\x00",
    "long": '{"arch": "' + "x" * (2 << 20) + '"}',
    "twice": '{"ps": 0.1, "ps": 0.2}',
    "list": "[1, 2]",
    "file": '{"arch": "/etc/passwd:x"}',
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_params_are_one_line(tmp_path, name):
    folder = experiment(tmp_path / "e")
    (folder / "params.json").write_text(HOSTILE_JSON[name])
    code, printed = call("train", "--data_dir", make_dataset(tmp_path / "d", ("train",)), "--model_dir", folder)
    assert code == 2, printed[:500]
    assert len(printed.strip().splitlines()) == 1, printed[:500]
    assert len(printed) < 2000, printed[:500]
    assert sorted(path.name for path in folder.iterdir()) == ["params.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"last": 3}', "[" * 100_000, '{"format": 1, "last": {}}'])
def test_a_hostile_manifest_is_damage(tmp_path, text):
    data, folder = make_dataset(tmp_path / "d", ("train",)), experiment(tmp_path / "e", num_epochs=1)
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    (folder / "checkpoints/manifest.json").write_text(text)
    before = tree(folder)
    code, printed = call("train", "--data_dir", data, "--model_dir", folder)
    assert code == 3, printed
    assert "not touched" in printed, printed
    assert len(printed.strip().splitlines()) == 1, printed
    assert tree(folder) == before


@pytest.mark.parametrize("name", ["record/status.json", "record/meta.json", "record/resolved.json", "history.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"state": 3}', "[" * 50_000, '"x"'])
def test_damaged_records_are_no_traceback(tmp_path_factory, trained_folder, name, text):
    data, folder = trained_folder
    copy = tmp_path_factory.mktemp("c") / "e"
    shutil.copytree(folder, copy, symlinks=True)
    (copy / name).write_text(text)
    for argv in (
        ("train", "--data_dir", data, "--model_dir", copy),
        ("evaluate", "--data_dir", data, "--model_dir", copy),
        ("synthesize_results", copy),
        ("plot_results", copy),
    ):
        code, printed = call(*argv)
        assert code in (0, 2, 3), f"{argv}: {code} {printed}"
        assert "Traceback" not in printed


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    work = tmp_path_factory.mktemp("t")
    data, folder = make_dataset(work / "data"), experiment(work / "e", num_epochs=1)
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    return data, folder


def test_json_of_the_right_shape_with_wrong_types_is_no_traceback(trained_folder, tmp_path):
    data, folder = trained_folder
    for name in ("record/resolved.json", "record/meta.json"):
        values = json.loads((folder / name).read_text())
        for key, value in values.items():
            wrong = [1] if isinstance(value, dict) else {"wrong": [1]}
            copy = tmp_path / f"{Path(name).stem}_{key}"
            shutil.copytree(folder, copy, symlinks=True)
            (copy / name).write_text(json.dumps(seal(values | {key: wrong})))  # as one does who edits it by hand
            for script in ("train", "evaluate"):
                code, printed = call(script, "--data_dir", data, "--model_dir", copy)
                assert code in (0, 2, 3), f"{script} {name} {key}: {code} {printed}"
            shutil.rmtree(copy)


# --- anything -------------------------------------------------------------------------------------------------


def test_mutated_files_by_the_thousand():
    import fuzz

    found = fuzz.run(2000, seed=1)
    assert not found["failures"], found["failures"][:3]
    assert found["largest_mib"] < fuzz.MAX_MIB


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_100_000_mutated_files():
    import fuzz

    found = fuzz.run(100_000, seed=2)
    assert not found["failures"], found["failures"][:3]
    assert found["largest_mib"] < fuzz.MAX_MIB
