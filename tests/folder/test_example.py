"""experiments/example, the finished experiment of a fresh clone: looked at, asked, measured and trained again."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import make_example
import pytest
from kit import ROOT, call, copy_repository, shell, tree, weights

from folder.folder import Folder
from folder.provenance import RESULT_CODE, changed_since_listed
from utils import read_json, write_json

EXAMPLE = ROOT / make_example.EXAMPLE
VALUES = ("loss", "accuracy")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / "digits"
    code, printed = call("build_dataset", "--source", "digits", "--data_dir", data)
    assert code == 0, printed
    return data


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """The example as somebody else gets it: no key, no cache, and the times of a clone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    copy = Path(shutil.copytree(EXAMPLE, tmp_path / "example"))
    for number, path in enumerate(sorted(copy.rglob("*"))):
        os.utime(path, (10**9 + number, 10**9 + number))
    return copy


def git(place, *words):
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "core.autocrlf=true"]
    done = subprocess.run(["git", "-C", str(place), *who, *words], capture_output=True, text=True, check=True)
    return done.stdout


# --- what it is -----------------------------------------------------------------------------------------------


def test_it_is_what_was_made_small_and_names_no_machine():
    assert make_example.list_wrong_files() == []
    assert len(make_example.read_digests()) == len(make_example.list_files())
    assert sum(path.stat().st_size for path in make_example.list_files()) < 300_000
    for path in make_example.list_files():
        assert path.suffix != ".safetensors" or path.stat().st_size < 100_000
        if path.suffix in (".json", ".jsonl", ".txt", ".log", ".csv", ".html", ".md"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.<*])/(home|root|tmp|work|Users|mnt|data)/", text), path
            assert not re.search(r'"host": "[^"]', text), path
    meta = Folder(EXAMPLE).meta()
    assert (meta["path"], meta["git"], meta["data_dir"]) == (None, None, "data/digits")
    assert all(not session["pid"] and not session["host"] for session in meta["sessions"])


def test_git_keeps_these_files_alone_and_reading_changes_none(tmp_path, digits):
    clone = copy_repository(tmp_path / "kit")
    git(clone, "init", "-q")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "all")
    listed = [ROOT / name for name in git(clone, "ls-files", make_example.EXAMPLE).splitlines()]
    assert sorted(listed) == sorted(make_example.list_files())
    # checked out anew, on a system that writes CRLF
    shutil.rmtree(clone / make_example.EXAMPLE)
    git(clone, "checkout", "--", ".")
    example = clone / make_example.EXAMPLE
    assert {name: content for name, content in tree(EXAMPLE).items() if EXAMPLE / name in listed} == tree(example)
    code = [clone / "tests/tools/make_example.py", "--check"]
    assert subprocess.run([sys.executable, *map(str, code)], capture_output=True).returncode == 0
    # what people do with it
    shutil.copytree(digits, clone / "data/digits")
    for script, *words in (
        ("synthesize_results", example),
        ("synthesize_results", "--parent_dir", clone / "experiments"),
        ("plot_results", example),
        ("plot_results", "--parent_dir", clone / "experiments"),
        ("predict", example, example / make_example.PICTURE),
        ("evaluate", example, "--data_dir", clone / "data/digits", "--split", "valid"),
        ("train", "--data_dir", clone / "data/digits", "--model_dir", example),
    ):
        exit_code, printed = call(script, *words)
        assert exit_code == 0, printed
        assert git(clone, "status", "--porcelain") == "", words


# --- what it is for -------------------------------------------------------------------------------------------


def test_a_stranger_looks_at_it_and_asks_it(stranger, tmp_path):
    code, printed = call("synthesize_results", stranger)
    assert code == 0, printed
    assert "2,806" in printed
    assert "done" in printed
    for name in ("train_history.png", "evaluation/confusion_matrix.png"):
        assert f'src="{name}"' in (stranger / "report.html").read_text()
    for path in re.findall(r'(?:src|href)="([^"#]+)"', (stranger / "report.html").read_text()):
        assert (stranger / path).exists() or path == "record/plotly.min.js"
    words = ["--model_dir", stranger, stranger / make_example.PICTURE]
    code, printed = call("predict", *words)
    assert code == 0, printed
    assert printed.splitlines()[-1].split()[1] == make_example.PICTURE_CLASS
    assert "trust" not in printed
    assert not (tmp_path / "state").exists()


def test_three_lines_from_another_folder(stranger, tmp_path):
    lines = f"from predict import load\nnet = load({str(stranger)!r})\nprint(next(iter(net('example/three.png'))))"
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr


def test_it_can_be_read_where_nothing_can_be_written(stranger, tmp_path):
    """Read-only, and without a home."""
    for path in [*stranger.rglob("*"), stranger]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for script, *words in (
            ("predict", stranger, stranger / make_example.PICTURE),
            ("synthesize_results", stranger),
        ):
            done = shell(
                script, *words, HOME="/nonexistent", XDG_STATE_HOME="/nonexistent", XDG_CACHE_HOME="/nonexistent"
            )
            assert done.returncode == 0, done.stderr
            assert "Traceback" not in done.stderr
    finally:
        for path in [stranger, *stranger.rglob("*")]:
            path.chmod(0o755)


def test_its_numbers_are_those_of_its_data(stranger, digits, tmp_path):
    for split, recorded in (("valid", "metrics_val_best_weights.json"), ("test", "metrics_test_best.json")):
        words = ["--data_dir", digits, "--model_dir", stranger, "--split", split, "--out", tmp_path / "out"]
        code, printed = call("evaluate", *words)
        assert code == 0, printed
        assert "other data" not in printed
        measured = Folder(tmp_path / "out").read(f"metrics_{split}_best.json")
        kept = Folder(stranger).read(recorded)
        assert [measured[name] for name in VALUES] == pytest.approx([kept[name] for name in VALUES], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("weights/best.safetensors", "is not what the run wrote"),
        ("record/meta.json", "is damaged"),
        ("record/resolved.json", "is damaged"),
    ],
)
def test_one_changed_byte_loses_the_trust(stranger, name, what):
    path = stranger / name
    content = bytearray(path.read_bytes())
    place = len(content) - 100 if name.startswith("weights") else content.rindex(b"0")
    content[place] ^= 1
    path.write_bytes(content)
    code, printed = call("predict", stranger, stranger / make_example.PICTURE)
    assert code == 3
    assert what in printed


def test_one_changed_byte_of_the_code_is_said(stranger):
    """Code is trusted by its digest: the tree is what trained it, or the files that are not are named."""
    path = stranger / "record/trust.json"
    listed = read_json(path)
    listed["files"]["model/tta.py"] = listed["files"]["model/tta.py"][:-1] + "-"
    write_json(path, listed)
    assert "model/tta.py" in changed_since_listed(stranger)
    code, printed = call("predict", stranger, stranger / make_example.PICTURE)
    assert code == 0
    assert "changed since the training" in printed


def test_code_that_somebody_adds_does_not_run(stranger):
    code = stranger / "record/code/experiment"
    code.mkdir(parents=True)
    (code / "evil.py").write_text("open('ran', 'w')\n")
    printed = call("predict", stranger, stranger / make_example.PICTURE, "--code", "folder")
    assert printed[0] == 2
    assert "--trust" in printed[1]


# --- once more ------------------------------------------------------------------------------------------------


def test_it_comes_out_the_same_again(digits, tmp_path):
    if changed := changed_since_listed(EXAMPLE, RESULT_CODE):
        pytest.skip(
            f"other code made it ({', '.join(changed[:3])}, ...): tests/tools/make_example.py makes it anew at a release"
        )
    pinned = Folder(EXAMPLE).resolved()["pinned"]
    again = tmp_path / "example"
    again.mkdir()
    shutil.copy(EXAMPLE / "params.json", again)
    code, printed = call("train", "--data_dir", digits, "--model_dir", again)
    assert code == 0, printed
    if Folder(again).resolved()["pinned"]["machine"] != pinned["machine"]:
        pytest.skip("made on another kind of machine: not the same to the last bit")
    for which in ("best", "last"):
        assert weights(again, which) == weights(EXAMPLE, which)
    for name in ("metrics_val_best_weights.json", "metrics_val_last_weights.json"):
        assert (again / name).read_bytes() == (EXAMPLE / name).read_bytes()
