"""What a result depends on, and the frozen copy of the code: record/code/."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from kit import ROOT, copy_kit, experiment, make_dataset, tree

from folder import provenance
from folder.folder import Folder
from folder.provenance import changed_files, is_different, is_result_code, references, snapshot, source_files

# In engine/ and model/ everything counts but these; elsewhere nothing counts but what is named.
NOT_COUNTED = {"model/images/check.py"}
COUNTED = {"train.py", "include.py", "utils.py", "folder/history.py", "engine/use/inference.py"}


def counts(name):
    if name.startswith(("engine/use/", "engine/observers/", "model/images/build/")):
        return name in COUNTED
    return name in COUNTED or (name.split("/")[0] in ("params", "model", "engine") and name not in NOT_COUNTED)


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """A copy of the kit that takes the place of the tree, and an experiment folder that has frozen it."""
    copy = copy_kit(tmp_path / "kit")
    monkeypatch.setattr(provenance, "ROOT", copy)
    folder = Folder(experiment(tmp_path / "m"))
    snapshot(folder, {})
    return copy, folder


def change_a_constant(path):
    """Another value for the first number that a module assigns at its top; without one, a statement more."""
    source = path.read_text()
    for node in ast.parse(source).body:
        value = node.value if isinstance(node, ast.Assign) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, int | float):
            lines = source.splitlines(keepends=True)
            line = lines[value.lineno - 1].encode()
            lines[value.lineno - 1] = (line[: value.col_offset] + b"12345" + line[value.end_col_offset :]).decode()
            return path.write_text("".join(lines))
    return path.write_text(source + "\nADDED = 1\n")


def test_a_change_in_any_module_is_noticed_exactly_where_a_result_depends_on_it(kit):
    copy, folder = kit
    names = [str(name) for name in source_files(copy) if name.suffix == ".py"]
    assert len(names) > 80
    wrong = []
    for name in names:
        before = (copy / name).read_bytes()
        change_a_constant(copy / name)
        if changed_files(folder, {}) != ([name] if counts(name) else []):
            wrong.append(name)
        (copy / name).write_bytes(before)
    assert wrong == []
    assert changed_files(folder, {}) == []


@pytest.mark.parametrize(
    "name", ["engine/new.py", "model/new.py", "model/images/new.py", "model/nets/new.py", "params/new.py"]
)
def test_a_new_file_counts_where_results_are_made(kit, name):
    copy, folder = kit
    (copy / name).write_text("ADDED = 1\n")
    assert changed_files(folder, {}) == [name]
    (folder.path / "record/code" / name).write_text("ADDED = 1\n")
    (copy / name).unlink()
    assert changed_files(folder, {}) == [name], "a file that is gone counts, too"


@pytest.mark.parametrize("name", ["report/new.py", "search/new.py", "folder/new.py", "engine/use/new.py", "new.py"])
def test_a_new_file_does_not_count_elsewhere(kit, name):
    copy, folder = kit
    (copy / name).write_text("ADDED = 1\n")
    assert changed_files(folder, {}) == []


def test_comments_layout_docstrings_and_the_version_do_not_count(kit):
    copy, folder = kit
    loop, include = copy / "engine/loop.py", copy / "include.py"
    loop.write_text('"""Another text."""\n# a comment\n\n' + loop.read_text().split('"""', 2)[2])
    include.write_text(include.read_text().replace("VERSION = ", "VERSION = 'next' or "))
    assert is_different(loop, folder.path / "record/code/report/rows.py")
    assert changed_files(folder, {}) == []
    loop.write_text(loop.read_text() + "\nVERSION = 1\n")
    assert changed_files(folder, {}) == ["engine/loop.py"]


def test_every_listed_path_is_there():
    assert [name for name in provenance.RESULT_CODE if not (ROOT / name).exists()] == []
    assert all((ROOT / name).is_file() and is_result_code(Path(name)) for name in COUNTED)


def test_what_counts_imports_nothing_of_model_that_does_not_count():
    """A file that a result depends on could not be left out by listing it."""
    files = {name for name in source_files(ROOT) if name.suffix == ".py"}
    for name in filter(is_result_code, files):
        nodes = ast.walk(ast.parse((ROOT / name).read_text()))
        modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        paths = {Path(module.replace(".", "/") + ".py") for module in modules if module.startswith("model.")}
        assert all(map(is_result_code, paths)), name


def test_the_version_stands_in_one_place():
    """pip reads it from include.py, as pyproject.toml says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "include.VERSION"}


def test_the_experiments_own_files_count(kit):
    copy, folder = kit
    resolved = {"arch": "net.py:Net", "augment": [{"name": "a/augment.py:Blur"}], "loss": "cross_entropy"}
    assert references(resolved) == {"net.py", "a/augment.py"}
    (folder.path / "a").mkdir()
    for name in references(resolved):
        (folder.path / name).write_text("VALUE = 1\n")
    shutil.rmtree(folder.path / "record/code")
    snapshot(folder, resolved)
    assert (folder.path / "record/code/experiment/augment.py").read_text() == "VALUE = 1\n"
    (folder.path / "net.py").write_text("VALUE = 2\n")
    assert changed_files(folder, resolved) == ["net.py"]


def test_all_rooms_are_frozen_with_their_templates(kit):
    copy, folder = kit
    extra = {
        "report/html/page.html": "<html>",
        "report/html/row.j2": "{{ row }}",
        "search/engines/job.sh.j2": "{{ job }}",
    }
    for name, text in extra.items():
        (copy / name).write_text(text)
    for name in ("report/html/.page.css.swp", "report/html/page.css~", "engine/__pycache__/loop.cpython-311.pyc"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("left behind")
    shutil.rmtree(folder.path / "record/code")
    snapshot(folder, {})
    frozen = tree(folder.path / "record/code")
    assert frozen.keys() >= {"report/html/page.css", "report/html/page.js", "train.py", "folder/folder.py", *extra}
    assert frozen.keys() == {name for name in tree(copy) if not name.endswith((".swp", "~", ".pyc"))}


def test_a_copy_that_was_cut_off_is_made_again(kit, monkeypatch):
    copy, folder = kit
    shutil.rmtree(folder.path / "record/code")
    copyfile = shutil.copyfile

    def stop(source, target):
        if str(source).endswith("report/rows.py"):
            raise KeyboardInterrupt
        copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", stop)
    with pytest.raises(KeyboardInterrupt):
        snapshot(folder, {})
    assert not (folder.path / "record/code").exists(), "half a copy must not be taken for a whole one"
    monkeypatch.undo()
    snapshot(folder, {})
    assert (folder.path / "record/code/report/rows.py").exists()
    assert sorted(path.name for path in (folder.path / "record").iterdir()) == ["code", "trust.json"]


def test_another_copy_is_kept_beside_the_earlier_one(kit):
    copy, folder = kit
    (copy / "engine/loop.py").write_text("ADDED = 1\n")
    snapshot(folder, {}, step=7)
    assert (folder.path / "record/code/engine/loop.py").read_text() == "ADDED = 1\n"
    assert (folder.path / "record/code_until_step_7_0/engine/loop.py").read_text() != "ADDED = 1\n"


def test_a_resume_notices_what_a_result_depends_on_and_nothing_else(tmp_path):
    copy = copy_kit(tmp_path / "kit")
    data = make_dataset(tmp_path / "data")
    folder = experiment(tmp_path / "m", num_epochs=2)

    def train(*flags):
        command = [sys.executable, str(copy / "train.py"), "--data_dir", str(data), "--model_dir", str(folder), *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ)
        return done.returncode, done.stdout + done.stderr

    def edit(name, old, new):
        text = (copy / name).read_text()
        assert text.count(old) == 1
        (copy / name).write_text(text.replace(old, new))

    assert train("--until", "1")[0] == 0
    before = tree(folder)
    for name, old, new in (
        ("utils.py", "digest_size=8", "digest_size=9"),
        ("include.py", "(0.485, 0.456, 0.406)", "(0.485, 0.456, 0.407)"),
    ):
        edit(name, old, new)
        code, printed = train()
        assert code == 2
        assert name in printed
        assert "--accept code" in printed
        assert tree(folder) == before, "a refused start writes nothing"
        edit(name, new, old)
    change_a_constant(copy / "report/html/runs_page.py")
    change_a_constant(copy / "report/statistics.py")
    code, printed = train()
    assert code == 0, printed
