"""The rules of the house as tests: who imports whom, how long things may be, what is never called.

Each rule is one test that goes through every file and names all offenders.
"""

import ast
import functools
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kit import ROOT

SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - {"include", "utils"}
ROOMS = ("params", "model", "folder", "report", "engine", "search")

# What each room and script may import besides libraries.
GROUND = {"include", "utils", "params"}
MAY_IMPORT = {
    "include": set(),
    "utils": {"include"},
    "params": GROUND,
    "model": {*GROUND, "model"},
    "folder": {*GROUND, "folder"},
    "report": {*GROUND, "folder", "report"},
    "engine": {*GROUND, "folder", "report", "engine"},
    "search": {*GROUND, "folder", "report", "engine", "search"},
    **{script: {*GROUND, *ROOMS} for script in SCRIPTS},
}

MAX_SCRIPT_LINES = 200
MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_TRAIN_LINES = 45  # train.train(), which is read from top to bottom
MAX_FILES_PER_FOLDER = 16  # besides __init__.py
MAX_ROOM_SHARE = 0.30
TEMPLATES = ("j2", "js", "css", "txt")
MAX_ANY = 119  # mentions of typing.Any in the kit, imports aside
MAX_FORMATTER_SKIPS = 10  # "fmt: skip" in the whole repository: tables only

PURE = ["engine/loop.py", "engine/schedule.py", "engine/ema.py", "search/strategy.py", "model/metric.py"]
PURE_MAY_NOT_IMPORT = {"os", "shutil", "logging", "tempfile"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "os.system",
    "yaml.load",
    "yaml.safe_load",
    "joblib.load",
}
FORBIDDEN_IMPORTS = {"pickle", "yaml", "joblib", "marshal", "shelve"}
MAKES_PAYLOADS = "tests/proofs/test_hostile.py"  # pickles that must never be loaded

KIT = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])
OTHERS = ("tests", "benchmarks", "docs", "experiments")
ALL = KIT + sorted(path for folder in OTHERS for path in (ROOT / folder).rglob("*.py"))


# --- reading the source -----------------------------------------------------------------------------


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(path: Path) -> str:
    """The room of a module; a root script is a room of its own."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those inside functions and under TYPE_CHECKING too.

    `from a import b` gives `a.b` where that is a module of the repository, else `a`.
    """
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = list(path.relative_to(ROOT).parts[: -node.level]) if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield node.lineno, full if is_module(full) else module


def is_module(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def tops(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    return {module.split(".")[0] for _, module in imports(path)}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, node) of every call of a plain or dotted name."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            parts, target = [], node.func
            while isinstance(target, ast.Attribute):
                parts.append(target.attr)
                target = target.value
            if isinstance(target, ast.Name):
                yield ".".join(reversed([*parts, target.id])), node


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every comment."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def assert_none(offenders: list[str]) -> None:
    assert not offenders, "\n".join(["", *offenders])


# --- who imports whom -------------------------------------------------------------------------------


def test_imports_point_one_way():
    """Root scripts never import each other, and model/ never meets folder, report, engine or search."""
    assert_none(
        [
            f"{name(path)}:{line} {room(path)} may not import {module}"
            for path in KIT
            for line, module in imports(path)
            if module.split(".")[0] in set(MAY_IMPORT) - MAY_IMPORT[room(path)]
        ]
    )


def import_graph() -> dict[str, set[str]]:
    """Module of the kit -> modules of the kit that it imports anywhere."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in KIT}
    return {module: {other for _, other in imports(path) if other in modules} for module, path in modules.items()}


def find_circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""
    reachable = {}
    for start in graph:
        seen, waiting = set(), [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        reachable[start] = seen
    circles = {frozenset({a} | {b for b in reachable[a] if a in reachable[b]}) for a in graph if a in reachable[a]}
    return sorted(sorted(circle) for circle in circles)


def test_no_modules_import_each_other():
    """Imports inside functions and under TYPE_CHECKING count: a circle is a circle."""
    assert find_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == [["b", "c"], ["d"]]
    assert_none([f"these import each other: {', '.join(circle)}" for circle in find_circles(import_graph())])


def test_no_test_imports_another():
    assert_none(
        [
            f"{name(path)}:{line} imports {module}: shared builders belong in tests/tools/"
            for path in (ROOT / "tests").rglob("*.py")
            for line, module in imports(path)
            if re.match(r"(tests?\b|test_|conftest)", module.split(".")[-1]) or module.startswith("tests.")
        ]
    )


def test_every_test_lies_in_a_folder_for_its_kind():
    folders = {
        path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith(("_", "."))
    }
    assert folders == {"unit", "folder", "search", "report", "proofs", "tools", "data"}
    assert_none([f"{name(path)} lies outside of them" for path in (ROOT / "tests").glob("test_*.py")])


# --- sizes ------------------------------------------------------------------------------------------


def test_modules_are_short():
    limits = {path: MAX_SCRIPT_LINES if room(path) in SCRIPTS else MAX_MODULE_LINES for path in KIT}
    assert_none(
        [
            f"{name(path)} has {num_lines(path)} lines of {limit}"
            for path, limit in limits.items()
            if num_lines(path) > limit
        ]
    )


def test_functions_are_short():
    assert_none(
        [
            f"{name(path)}:{node.lineno} {node.name} has {length(node)} lines"
            for path in KIT
            for node in functions(path)
            if length(node) > MAX_FUNCTION_LINES
        ]
    )


def test_train_reads_from_top_to_bottom():
    lengths = [length(node) for node in functions(ROOT / "train.py") if node.name == "train"]
    assert len(lengths) == 1
    assert lengths[0] <= MAX_TRAIN_LINES


def depth(node: ast.AST, level: int = 0) -> int:
    deeper = isinstance(node, ast.For | ast.While | ast.If | ast.With | ast.Try)
    return max([level + deeper, *(depth(child, level + deeper) for child in ast.iter_child_nodes(node))])


def test_the_loop_is_three_levels_deep_at_most():
    assert_none([node.name for node in functions(ROOT / "engine/loop.py") if depth(node) > 3])


def folders_of(room: str) -> list[Path]:
    return [path for path in [ROOT / room, *(ROOT / room).rglob("*")] if path.is_dir() and path.name != "__pycache__"]


def test_every_room_says_what_lives_there():
    wrong = []
    for path in (path for name in ROOMS for path in folders_of(name) if list(path.glob("*.py"))):
        init = path / "__init__.py"
        if not init.exists() or not ast.get_docstring(parse(init)):
            wrong.append(f"{name(init)} needs a docstring")
    assert_none(wrong)


def test_no_room_shows_more_than_a_newcomer_can_take_in():
    wrong = []
    for path in (path for name in ROOMS for path in folders_of(name)):
        files = [file for file in path.iterdir() if file.is_file() and file.name != "__init__.py"]
        if len(files) > MAX_FILES_PER_FOLDER:
            wrong.append(f"{name(path)}/ shows {len(files)} files of {MAX_FILES_PER_FOLDER}")
    assert_none(wrong)


def test_no_room_outgrows_the_others():
    """Lines of Python, of templates and of what runs in a page; root scripts count in the whole."""
    templates = [path for room in ROOMS for kind in TEMPLATES for path in (ROOT / room).rglob(f"*.{kind}")]
    source = KIT + templates
    total = sum(map(num_lines, source))
    shares = {name: sum(num_lines(path) for path in source if room(path) == name) / total for name in ROOMS}
    assert_none([f"{name}/ holds {share:.0%} of the lines" for name, share in shares.items() if share > MAX_ROOM_SHARE])


# --- types and exceptions to the tools --------------------------------------------------------------


def count_any(path: Path) -> int:
    lines = [line for line in path.read_text().splitlines() if not re.match(r"\s*(from|import)\b", line)]
    return len(re.findall(r"\bAny\b", "\n".join(lines)))


def test_types_say_what_they_are():
    counts = {name(path): count_any(path) for path in KIT}
    most = sorted(((number, path) for path, number in counts.items() if number), reverse=True)
    assert sum(counts.values()) <= MAX_ANY, f"{sum(counts.values())} mentions of Any: {most}"


def test_the_formatter_is_rarely_turned_off():
    places = [f"{name(path)}:{line}" for path in ALL for line, text in comments(path) if text.startswith("# fmt:")]
    assert len(places) <= MAX_FORMATTER_SKIPS, f"{len(places)} of {MAX_FORMATTER_SKIPS}: {' '.join(places)}"


def selected_rules() -> list[str]:
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]["select"]


def test_rules_are_ignored_one_by_one():
    """An exception names its rule, and only rules that are on need exceptions."""
    rules, wrong = tuple(selected_rules()), []
    for path in ALL:
        for line, text in comments(path):
            where = f"{name(path)}:{line}"
            if match := re.search(r"# (?:ruff: *|flake8: *)?noqa(.*)", text):
                codes = re.findall(r"\b[A-Z]+[0-9]+\b", match[1])
                if not codes:
                    wrong.append(f"{where} ignores every rule")
                wrong += [f"{where} ignores {code}, which is not on" for code in codes if not code.startswith(rules)]
            if path in KIT and "# type: ignore" in text:
                wrong.append(f"{where} name the rule: # pyright: ignore[rule]")
            if re.search(r"# pyright: *(ignore(?!\[)|basic|standard|\w+ *= *)", text):
                wrong.append(f"{where} name the rule: # pyright: ignore[rule]")
    assert_none(wrong)


# --- what is never called ---------------------------------------------------------------------------


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def unsafe_calls(path: Path) -> Iterator[str]:
    for called, node in calls(path):
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        where = f"{name(path)}:{node.lineno}"
        if called in FORBIDDEN_CALLS:
            yield f"{where} calls {called}"
        if "shell" in keywords and not is_constant(keywords["shell"], False):
            yield f"{where} starts a shell"
        if called == "torch.load" and not is_constant(keywords.get("weights_only"), True):
            yield f"{where} torch.load without weights_only=True"
        if called in ("np.load", "numpy.load") and "allow_pickle" in keywords:
            yield f"{where} allow_pickle"


def test_nothing_is_executed_that_was_read():
    wrong = [line for path in ALL for line in unsafe_calls(path)]
    for path in ALL:
        if name(path) != MAKES_PAYLOADS:
            wrong += [f"{name(path)} imports {module}" for module in sorted(FORBIDDEN_IMPORTS & tops(path))]
    assert_none(wrong)


def test_only_root_scripts_print():
    assert_none(
        [
            f"{name(path)}:{node.lineno} prints"
            for path in KIT
            if room(path) not in SCRIPTS and name(path) != "utils.py"
            for called, node in calls(path)
            if called == "print"
        ]
    )


@pytest.mark.parametrize("path", PURE)
def test_pure_modules_touch_no_file(path):
    assert not PURE_MAY_NOT_IMPORT & tops(ROOT / path)
    assert not {"open", "print"} & {called for called, _ in calls(ROOT / path)}


# --- commands and generated files -------------------------------------------------------------------


def run_help(script: str) -> str:
    """What is wrong with `script --help`: nothing, or what it imported or printed."""
    heavy = ["torch", "numpy", "matplotlib", "PIL", "sklearn", "albumentations", "optuna", "plotly"]
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{script}.py', '--help']\n"
        f"try: runpy.run_path({str(ROOT / (script + '.py'))!r}, run_name='__main__')\n"
        "except SystemExit as error: assert not error.code, error.code\n"
        f"print('HEAVY', [m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    return "" if "HEAVY []" in done.stdout else f"{script}.py: {done.stdout[-300:]}{done.stderr[-300:]}"


def test_help_imports_nothing_heavy():
    with ThreadPoolExecutor(2) as pool:
        assert_none([wrong for wrong in pool.map(run_help, sorted(SCRIPTS)) if wrong])


def test_generated_files_are_fresh():
    done = subprocess.run([sys.executable, str(ROOT / "docs/generate.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shipped_experiments_are_valid():
    import params

    folders = sorted(path.parent for path in (ROOT / "experiments").glob("*/params.json"))
    assert len(folders) >= 7
    for folder in folders:
        assert not params.load(folder).no_effect(), folder
        assert (folder / "README.md").exists(), f"{folder.name} needs a README.md"


# --- the list of guards -----------------------------------------------------------------------------


def test_every_guard_still_names_its_line_and_its_test():
    import guards

    assert_none([f"{guard.name}: {wrong}" for guard in guards.GUARDS if (wrong := guards.find_mismatch(guard))])
