"""The tools of the tests: what mutate.py changes, and that it finds the tests that reach a change."""

import os
import subprocess
import sys

import mutants
import mutate
import reach
from kit import ROOT
from lines import FOLDER, MANY, OUTPUT, environment_for_children

SOURCE = b'''"""A docstring of 3 lines."""
LIMIT: int = 3

def share(count: int, total: int = 1, exact=True) -> float:
    """Not 1."""
    if not count and total >= LIMIT:
        raise ValueError(f"{count + 1} of {total}")
    log.info("seen", 2)
    seen.append(count)
    return min(count - 1, total * 2) / scale(count, total)
'''


def changes() -> set[str]:
    """The lines that mutants of SOURCE have and SOURCE has not."""
    before = SOURCE.decode().splitlines()
    after = set()
    for mutant in mutants.Places("x.py", SOURCE).mutants:
        for choice in range(len(mutant.instead)):
            lines = mutant.apply(SOURCE, choice).decode().splitlines()
            assert lines[mutant.line - 1] != before[mutant.line - 1]
            after |= set(lines) - set(before)
    return {line.strip() for line in after}


def test_each_kind_of_mutant_is_made_and_messages_are_left_alone():
    returned = "return min(count - 1, total * 2) / scale(count, total)"
    assert changes() == {
        "LIMIT: int = (3 + 1)",
        "def share(count: int, total: int = 0, exact=True) -> float:",
        "def share(count: int, total: int = 2, exact=True) -> float:",
        "def share(count: int, total: int = 1, exact=False) -> float:",
        "if count and total >= LIMIT:",
        "if not count or total >= LIMIT:",
        "if not count and total > LIMIT:",
        "if not count and total < LIMIT:",
        "pass",
        returned.replace("min", "max"),
        returned.replace("-", "+"),
        returned.replace("- 1", "- 0"),
        returned.replace("- 1", "- 2"),
        returned.replace("*", "/"),
        returned.replace("total * 2", "total * (2 + 1)"),
        returned.replace(") / ", ") * "),
        returned.replace("count, total", "total, count"),
    }


def test_the_tables_of_mutate_name_what_there_is():
    for pattern in [*mutants.MUTATED, *mutants.LEFT_OUT]:
        assert list(ROOT.glob(pattern)), pattern
    for test in [*reach.SLOW, *reach.NEVER]:
        assert (ROOT / test).exists(), test


def test_mutants_are_drawn_by_seed():
    files = mutants.mutated_files(["engine/"])
    assert mutants.draw(files, 5, seed=1) == mutants.draw(files, 5, seed=1)
    assert mutants.draw(files, 5, seed=1) != mutants.draw(files, 5, seed=2)


def test_the_place_of_a_mutant_is_its_statement_and_defaults_run_at_import(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    (tmp_path / "x.py").write_bytes(SOURCE)
    places = {(mutants.place_of(mutant), mutant.line) for mutant in mutants.Places("x.py", SOURCE).mutants}
    assert places == {
        ((2, 2, True), 2),  # the module's constant
        ((4, 4, True), 4),  # defaults of the function
        ((6, 6, False), 6),  # the header of the if, not its body
        ((9, 9, False), 9),
        ((10, 10, False), 10),
    }


def test_the_tracer_notes_lines_of_the_kit_in_other_processes(tmp_path):
    """Lines that run, each once; a function that is called very often counts as a whole; nothing of other folders."""
    kit, hooks, output = tmp_path / "kit", tmp_path / "hooks", tmp_path / "lines"
    (kit / "tests").mkdir(parents=True)
    hooks.mkdir()
    (kit / "tests" / "seen.py").write_text("def idle():\n    return 1\n")
    (kit / "often.py").write_text("def half(x):\n    if x < 0:\n        return 0\n    return x / 2\n")
    (kit / "main.py").write_text(
        f"import often, seen\nseen.idle()\nfor x in range({MANY} + 2):\n    often.half(x)\nif x < 0:\n    x = 1\n"
    )
    (hooks / "sitecustomize.py").write_text(environment_for_children(str(ROOT / "tests/tools")))
    paths = f"{hooks}:{kit / 'tests'}"
    environment = os.environ | {FOLDER: str(kit), OUTPUT: str(output), "PYTHONPATH": paths}
    subprocess.run([sys.executable, str(kit / "main.py")], env=environment, check=True, timeout=60)
    lines = output.read_text().splitlines()
    assert sorted(lines) == sorted(
        [*(f"main.py {line}" for line in (1, 2, 3, 4, 5)), *(f"often.py {line}" for line in (-1, 1, 2, 4))]
    )


def test_tests_of_a_line_are_those_that_reach_it_the_fastest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(reach, "ROOT", tmp_path)
    (tmp_path / "x.py").write_text("LIMIT = 3\n\ndef share(a):\n    if a:\n        return 1\n    return 2\n")
    (tmp_path / "test_near.py").write_text("import x\n")
    (tmp_path / "test_far.py").write_text("import y\n")
    near = reach.ModuleReach({"test_near.py::a": 5.0, "test_near.py::b": 2.0}, files={"x.py"})
    near.lines = {"test_near.py::a": {"x.py": {4, 5}}, "test_near.py::b": {"x.py": {4, 6}}}
    far = reach.ModuleReach({"test_far.py::c": 1.0, "test_far.py::d": 1.5}, files={"x.py"})
    far.lines = {"test_far.py::c": {"x.py": {-3}}}
    table = reach.Table({"test_near.py": near, "test_far.py": far})
    assert table.tests_for("x.py", 5, 5, at_import=False) == ["test_far.py::c", "test_near.py::a"]
    assert table.tests_for("x.py", 6, 6, at_import=False) == ["test_far.py::c", "test_near.py::b"]
    at_import = table.tests_for("x.py", 1, 1, at_import=True)
    assert at_import == ["test_near.py::b", "test_near.py::a", "test_far.py::c", "test_far.py::d"]
    assert list(mutate.batches(at_import, table)) == [
        ["test_near.py::b"],
        ["test_near.py::a", "test_far.py::c", "test_far.py::d"],
    ]
