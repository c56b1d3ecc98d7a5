"""The house rules, as tests: who may import whom, what is never called, how long a file may be."""

import ast
import subprocess
import sys

import pytest
from kit import ROOT

SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - {"include", "utils"}
ROOMS = ("params", "model", "folder", "report", "engine", "search")
GROUND = {"include", "utils", "params"}
BELOW = {
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
KIT = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
ALL = KIT + [p for room in ("tests", "benchmarks", "docs", "experiments") for p in (ROOT / room).rglob("*.py")]
SILENT = {"engine/loop.py", "engine/schedule.py", "engine/ema.py", "search/strategy.py", "model/metric.py"}


def name(path):
    return str(path.relative_to(ROOT))


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", KIT, ids=name)
def test_imports_point_one_way(path):
    wrong = set(imports(ast.parse(path.read_text()))) & set(BELOW) - BELOW[room(path)]
    assert not wrong, f"{name(path)}: {room(path)} may not import {', '.join(sorted(wrong))}"


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            parts, target = [], node.func
            while isinstance(target, ast.Attribute):
                parts.append(target.attr)
                target = target.value
            if isinstance(target, ast.Name):
                yield ".".join(reversed([*parts, target.id])), node


FORBIDDEN = {"eval", "exec", "pickle.load", "pickle.loads", "os.system", "yaml.load", "yaml.safe_load", "joblib.load"}


@pytest.mark.parametrize("path", ALL, ids=name)
def test_nothing_is_executed_that_was_read(path):
    tree = ast.parse(path.read_text())
    makes_payloads = name(path) == "tests/proofs/test_hostile.py"
    assert makes_payloads or not {"pickle", "yaml", "joblib", "marshal", "shelve"} & set(imports(tree))
    for called, node in calls(tree):
        assert called not in FORBIDDEN, f"{name(path)}:{node.lineno} calls {called}"
        keywords = {k.arg: k.value for k in node.keywords}
        shell = keywords.get("shell")
        assert shell is None or (isinstance(shell, ast.Constant) and shell.value is False), (
            f"{name(path)}:{node.lineno} shell="
        )
        if called == "torch.load":
            safe = keywords.get("weights_only")
            assert isinstance(safe, ast.Constant) and safe.value is True, (
                f"{name(path)}:{node.lineno} torch.load without weights_only=True"
            )
        if called in ("np.load", "numpy.load"):
            assert "allow_pickle" not in keywords, f"{name(path)}:{node.lineno} allow_pickle"


@pytest.mark.parametrize("path", KIT, ids=name)
def test_only_root_scripts_print_and_read_argv(path):
    if room(path) in SCRIPTS or name(path) in ("utils.py",):
        return
    for called, node in calls(ast.parse(path.read_text())):
        assert called != "print", f"{name(path)}:{node.lineno} prints"


@pytest.mark.parametrize("path", [ROOT / path for path in sorted(SILENT) if (ROOT / path).exists()], ids=name)
def test_pure_modules_touch_no_file(path):
    tree = ast.parse(path.read_text())
    assert not {"os", "shutil", "logging", "tempfile"} & set(imports(tree))
    assert not {"open", "print"} & {called for called, _ in calls(tree)}


@pytest.mark.parametrize("path", KIT, ids=name)
def test_a_file_has_one_job(path):
    limit = 200 if room(path) in SCRIPTS else 300 if name(path) == "utils.py" else 400
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", KIT, ids=name)
def test_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{name(path)}:{node.lineno} {node.name} has {length} lines"


def depth(node, level=0):
    deeper = isinstance(node, ast.For | ast.While | ast.If | ast.With | ast.Try)
    return max([level + deeper, *(depth(child, level + deeper) for child in ast.iter_child_nodes(node))])


def test_the_loop_is_three_levels_deep_at_most():
    tree = ast.parse((ROOT / "engine/loop.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert depth(node) <= 3, node.name


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_help_imports_nothing_heavy(script):
    heavy = ["torch", "numpy", "matplotlib", "PIL", "sklearn", "albumentations", "optuna", "plotly"]
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{script}.py', '--help']\n"
        f"try: runpy.run_path({str(ROOT / (script + '.py'))!r}, run_name='__main__')\n"
        "except SystemExit as error: assert not error.code, error.code\n"
        f"print('HEAVY', [m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "HEAVY []" in done.stdout, done.stdout[-300:] + done.stderr[-300:]


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
