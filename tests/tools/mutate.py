"""Mutants: change one operator, constant or call of the kit, and see whether a test notices.

    python tests/tools/mutate.py --num 300 --seed 20261125        # drawn from everything that a result depends on
    python tests/tools/mutate.py --only engine/ema.py             # every mutant of one file
    python tests/tools/mutate.py --only report/ --num 30 --jobs 2

A survivor is printed with its file, line and difference: either a test is missing, or the change makes no
difference to anybody (then it is an equivalent mutant: say why where mutants are reported).

How it works. The parent imports what is slow to import (torch, scikit-learn, ...) and nothing of the kit. It copies
the repository, and first runs the nearest tests of each file in a fork, noting which lines of the file each test
runs and how long it takes. Then every mutant is one fork that changes one place in its copy and runs, fastest
first, the tests that reach that line (all nearest tests when the line runs at import or in another process) until
one fails. mutmut and cosmic-ray start a new interpreter for each mutant, which costs seconds of importing torch.
"""

import argparse
import ast
import contextlib
import difflib
import functools
import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from types import FrameType

import pytest
from kit import ROOMS, ROOT, copy_repository

# --- what is mutated, and what tests it -------------------------------------------------------------

# Everything that a result or a table depends on.
MUTATED = ["include.py", "utils.py", "params/**/*.py", "model/**/*.py", "folder/history.py", "folder/manifest.py"]
MUTATED += ["engine/**/*.py", "report/*.py", "report/plots/ranking.py", "search/strategy*"]
LEFT_OUT = ["model/images/build/*.py", "model/images/check*", "engine/observers*", "engine/submit*"]
LEFT_OUT += ["report/figures*", "report/watch*", "report/tree*", "report/write_results*"]
LEFT_OUT += ["report/image_sheets*", "report/json_files*"]

# The nearest tests of files that tests reach without importing them, or that have many tests.
T, F = "tests/folder/test_train.py", "tests/folder/test_user_errors.py"
NEAREST = {
    "utils.py": ["tests/unit/test_metric.py", "tests/unit/test_data.py", F, T],
    "params/keys.py": ["tests/unit/test_params.py", "tests/proofs/test_architecture.py"],
    "folder/manifest.py": [T, "tests/folder/test_evaluate.py"],
    **{f"engine/{name}.py": [T, F] for name in ("plan", "session", "control", "checkpoint", "precision")},
    "engine/distributed.py": [T, "tests/proofs/test_distributed.py"],
    "engine/use/verify.py": [T],
    "model/muon.py": ["tests/unit/test_recipes.py", T],
    "model/tta.py": ["tests/unit/test_recipes.py", "tests/folder/test_evaluate.py"],
    "report/diff.py": ["tests/report/test_tables.py"],
}
SLOW = {"tests/proofs/test_reliability.py", "tests/proofs/test_processes.py", "tests/proofs/test_distributed.py"}
SLOW |= {"tests/proofs/test_notebooks.py", "tests/search/test_engines.py", "tests/folder/test_real_data.py"}

SECONDS = 30  # a mutant may take this long, or 5 times what its tests take without it


def mutated_files(only: list[str]) -> list[str]:
    """Paths in the repository, those below one of `only` when it names any."""
    paths = {path for pattern in MUTATED for path in ROOT.glob(pattern) if path.suffix == ".py"}
    paths -= {path for pattern in LEFT_OUT for path in ROOT.glob(pattern)}
    names = sorted(path.relative_to(ROOT).as_posix() for path in paths)
    return [name for name in names if not only or name.startswith(tuple(only))]


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


@functools.cache
def importers() -> dict[str, set[Path]]:
    """Module -> files of the kit and of the tests that import it."""
    files = [
        path
        for top in ("*.py", *(f"{room}/**/*.py" for room in ROOMS), "tests/**/test_*.py")
        for path in ROOT.glob(top)
    ]
    importers = defaultdict(set)
    for path in files:
        for module in imported_modules(path):
            importers[module].add(path)
    return importers


def nearest_tests(name: str) -> list[str]:
    """The test files of a module: those of the table, or those that import it by way of the fewest other modules."""
    if name in NEAREST:
        return NEAREST[name]
    seen, modules = set(), {name}
    while modules:
        dotted = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in modules}
        seen |= modules
        found = {path.relative_to(ROOT).as_posix() for module in dotted for path in importers().get(module, ())}
        if tests := sorted(path for path in found if path.startswith("tests/") and path not in SLOW):
            return tests
        modules = found - seen
    return [T]


# --- the mutants of a file --------------------------------------------------------------------------

COMPARISONS = {
    ast.Lt: ("<", ["<=", ">"]),
    ast.LtE: ("<=", ["<", ">"]),
    ast.Gt: (">", [">=", "<"]),
    ast.GtE: (">=", [">", "<"]),
    ast.Eq: ("==", ["!="]),
    ast.NotEq: ("!=", ["=="]),
    ast.In: ("in", ["not in"]),
    ast.NotIn: (r"not\s+in", ["in"]),
    ast.Is: ("is", ["is not"]),
    ast.IsNot: (r"is\s+not", ["is"]),
}
ARITHMETIC = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}
SYMMETRIC = {"min", "max", "minimum", "maximum", "equal", "isclose", "allclose", "add", "gcd"}  # order means nothing
WITHOUT_EFFECT = {"non_blocking", "stacklevel", "strict"}  # arguments that change no result on a CPU
SPEAKS = {"print", "log", "logging", "logger", "warnings", "console", "say"}  # calls whose words are for people


@dataclass(frozen=True)
class Mutant:
    """In `file`, the text from `start` to `end` (offsets into its bytes) becomes one of `instead`."""

    file: str
    line: int
    start: int
    end: int
    instead: tuple[str, ...]
    text: str = field(compare=False, default="", repr=False)

    def apply(self, source: bytes, choice: int) -> bytes:
        return source[: self.start] + self.instead[choice].encode() + source[self.end :]


class Places(ast.NodeVisitor):
    """Collects the places of a file that can be mutated; annotations, messages and docstrings cannot."""

    def __init__(self, file: str, source: bytes):
        self.file, self.source, self.mutants = file, source, []
        self.begins = [0]
        for line in source.splitlines(keepends=True):
            self.begins.append(self.begins[-1] + len(line))
        self.visit(ast.parse(source))

    def offset(self, line: int, column: int) -> int:
        return self.begins[line - 1] + column

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self.offset(node.lineno, node.col_offset)

    def end(self, node: ast.expr | ast.stmt) -> int:
        return self.offset(node.end_lineno or node.lineno, node.end_col_offset or 0)

    def text(self, node: ast.expr | ast.stmt) -> str:
        return self.source[self.start(node) : self.end(node)].decode()

    def add(self, node: ast.expr | ast.stmt, start: int, end: int, *instead: str) -> None:
        line = self.source.count(b"\n", 0, start) + 1
        self.mutants.append(Mutant(self.file, line, start, end, instead))

    def replace_between(self, left: ast.expr, right: ast.expr, pattern: str, instead: Iterable[str]) -> None:
        """The operator that stands between two operands, whatever parentheses and comments are around it."""
        start = self.end(left)
        match = re.search(rf"(?<![\w<>=!*/]){pattern}(?![<>=*/])", self.source[start : self.start(right)].decode())
        if match:
            self.add(right, start + match.start(), start + match.end(), *instead)

    # What is not looked into.

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...

    def visit_Raise(self, node: ast.Raise) -> None: ...

    def visit_Assert(self, node: ast.Assert) -> None: ...

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "__name__ == '__main__'"):
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for child in [*node.args.defaults, *node.args.kw_defaults, *node.body]:
            if child:
                self.visit(child)

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for child in node.body:
            self.visit(child)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in WITHOUT_EFFECT:
            self.visit(node.value)

    # What is mutated.

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
            pattern, instead = COMPARISONS[type(operator)]
            self.replace_between(left, right, pattern, instead)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        has_text = any(
            isinstance(side, ast.JoinedStr | ast.Constant) and not is_number(side) for side in (node.left, node.right)
        )
        if type(node.op) in ARITHMETIC and not has_text:
            operator, instead = ARITHMETIC[type(node.op)]
            self.replace_between(node.left, node.right, re.escape(operator), [instead])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in ARITHMETIC:
            operator, instead = ARITHMETIC[type(node.op)]
            start = self.end(node.target)
            place = self.source.index(f"{operator}=".encode(), start)
            self.add(node, place, place + len(operator), instead)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.replace_between(left, right, words[0], [words[1]])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self.add(node, self.start(node), self.start(node.operand), "")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.add(node, self.start(node.test), self.end(node.test), f"(not ({self.text(node.test)}))")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.add(node, self.start(node), self.end(node), str(not node.value))
        elif is_number(node):
            others = ["1"] if node.value == 0 else ["0", "2"] if node.value == 1 else [f"({self.text(node)} + 1)"]
            self.add(node, self.start(node), self.end(node), *others)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node.value, ast.Call):
            words = set(re.split(r"\W+|_", ast.unparse(node.value.func)))
            if words & SPEAKS:
                return
            self.add(node, self.start(node), self.end(node), "pass")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function in NAMES:
            end = self.end(node.func)
            self.add(node, end - len(function), end, NAMES[function])
        plain = len(node.args) > 1 and not any(isinstance(arg, ast.Starred) for arg in node.args)
        if plain and function not in SYMMETRIC and self.text(node.args[0]) != self.text(node.args[1]):
            first, second = node.args[:2]
            between = self.source[self.end(first) : self.start(second)].decode()
            if "(" not in between and ")" not in between:
                self.add(node, self.start(first), self.end(second), f"{self.text(second)}{between}{self.text(first)}")
        self.generic_visit(node)


def is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def mutants_of(file: str) -> list[tuple[Mutant, int]]:
    """Every mutant of a file and its choices, as (mutant, choice); each one can be parsed."""
    source = (ROOT / file).read_bytes()
    found = []
    for mutant in Places(file, source).mutants:
        for choice in range(len(mutant.instead)):
            try:
                ast.parse(mutant.apply(source, choice))
            except SyntaxError:
                continue
            found.append((mutant, choice))
    return found


def draw(files: list[str], num: int, seed: int) -> list[tuple[Mutant, int]]:
    """`num` mutants: places uniformly over all files, then one of a place's choices."""
    by_place: dict[Mutant, list[int]] = defaultdict(list)
    for file in files:
        for mutant, choice in mutants_of(file):
            by_place[mutant].append(choice)
    rng = random.Random(seed)
    places = sorted(by_place, key=lambda mutant: (mutant.file, mutant.start, mutant.end))
    drawn = rng.sample(places, min(num, len(places))) if num else places
    return [(mutant, rng.choice(by_place[mutant])) for mutant in drawn]


# --- running tests in a fork ------------------------------------------------------------------------


@dataclass
class Reach:
    """What a run of the nearest tests without any mutant says: seconds and lines of the file, by test."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, list[int]] = field(default_factory=dict)

    def tests_for(self, line: int) -> list[str]:
        """Tests that reach a line, the fastest first; all when it runs at import or in another process."""
        reaching = [test for test, lines in self.lines.items() if line in lines]
        return sorted(reaching or self.seconds, key=lambda test: self.seconds[test])


class Recorder:
    """A pytest plugin that notes seconds and traced lines by test."""

    def __init__(self, path: Path):
        self.path, self.reach, self.lines = str(path), Reach(), set()
        self.failed: set[str] = set()

    def trace(self, frame: FrameType, event: str, arg: object):
        if frame.f_code.co_filename != self.path:
            return None
        if event == "line":
            self.lines.add(frame.f_lineno)
        return self.trace

    def pytest_runtest_setup(self, item: object) -> None:
        self.lines = set()
        threading.settrace(self.trace)
        sys.settrace(self.trace)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome == "passed":
            self.reach.seconds[report.nodeid] = self.reach.seconds.get(report.nodeid, 0) + report.duration
        if report.outcome == "failed":
            self.failed.add(report.nodeid)  # without any mutant: it can kill none
        if report.when == "teardown":
            sys.settrace(None)
            if report.nodeid in self.failed:
                self.reach.seconds.pop(report.nodeid, None)
            elif report.nodeid in self.reach.seconds:
                self.reach.lines[report.nodeid] = sorted(self.lines)


def run_tests(copy: Path, tests: list[str], output: Path, recorder: Recorder | None = None) -> int:
    """In the child: pytest's exit code for these tests of a copy of the repository."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(stream, number)
    os.chdir(copy)
    sys.path[:] = [str(copy), str(copy / "tests/tools"), *(path for path in sys.path if not path.startswith(str(ROOT)))]
    for name in [name for name, module in sys.modules.items() if is_ours(module)]:
        del sys.modules[name]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", "--rootdir", str(copy), "--no-header"]
    if recorder:
        options.remove("-x")
    return int(pytest.main([*options, *tests], plugins=[recorder] if recorder else []))


def is_ours(module: object) -> bool:
    path = getattr(module, "__file__", None) or ""
    return path.startswith(str(ROOT)) and "site-packages" not in path and not path.endswith("tests/tools/mutate.py")


def in_a_fork(copy: Path, tests: list[str], seconds: float, record: str = "") -> tuple[int | None, Reach]:
    """(exit code of pytest, or None when time was up; what was recorded of the file `record`)."""
    output, notes = copy.parent / "output", copy.parent / "notes.json"
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setpgid(0, 0)
            recorder = Recorder(copy / record) if record else None
            code = run_tests(copy, tests, output, recorder)
            if recorder:
                notes.write_text(json.dumps([recorder.reach.seconds, recorder.reach.lines]))
        finally:
            os._exit(code)
    code = wait(pid, time.monotonic() + seconds)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # whatever the tests left behind
    return code, Reach(*json.loads(notes.read_text())) if record and code is not None else Reach()


def wait(pid: int, end: float) -> int | None:
    """Exit code of a child, or None when it had to be killed at `end`."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.01)


class Worker:
    """One copy of the repository, in which one mutant at a time lives."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.copy = copy_repository(folder / "kit")
        shared = ROOT.parent / "shared"
        if shared.exists():
            (folder / "shared").symlink_to(shared)

    def measure(self, file: str) -> Reach:
        """Run the nearest tests of a file as it is; all must pass."""
        code, reach = in_a_fork(self.copy, nearest_tests(file), 900, record=file)
        if code != 0:
            passed = len(reach.seconds)
            print(f"{file}: its tests end with {code} without any mutant, {passed} pass: {self.output()}", flush=True)
        return reach

    def output(self) -> str:
        return (self.copy.parent / "output").read_text(errors="replace")[-1500:]

    def survives(self, mutant: Mutant, choice: int, reach: Reach) -> bool:
        """True when no test notices the mutant; one that runs into its time limit is noticed."""
        path, tests = self.copy / mutant.file, reach.tests_for(mutant.line)
        source = path.read_bytes()
        path.write_bytes(mutant.apply(source, choice))
        try:
            expected = sum(reach.seconds[test] for test in tests)
            code, _ = in_a_fork(self.copy, tests, max(SECONDS, 5 * expected))
        finally:
            path.write_bytes(source)
        return code == 0


def warm_up() -> None:
    """Import what the tests import, and nothing of the kit."""
    os.environ.update(OMP_NUM_THREADS="1", NO_ALBUMENTATIONS_UPDATE="1", PYTHONDONTWRITEBYTECODE="1", MPLBACKEND="Agg")
    sys.dont_write_bytecode = True
    import albumentations  # noqa: F401
    import hypothesis  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import plotly.graph_objects  # noqa: F401
    import pydantic  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch._dynamo  # noqa: F401
    import torchvision  # noqa: F401


# --- the command ------------------------------------------------------------------------------------


def difference(mutant: Mutant, choice: int) -> str:
    source = (ROOT / mutant.file).read_bytes()
    before, after = (text.decode().splitlines() for text in (source, mutant.apply(source, choice)))
    lines = difflib.unified_diff(before, after, lineterm="", n=0)
    return "\n".join(f"    {line}" for line in lines if not line.startswith(("---", "+++", "@@")))


def try_all(mutants: list[tuple[Mutant, int]], folder: Path, jobs: int) -> Iterator[tuple[Mutant, int, bool]]:
    """Each mutant, with whether it survives; `jobs` at a time."""
    idle: SimpleQueue[Worker] = SimpleQueue()
    for number in range(jobs):
        idle.put(Worker(folder / str(number)))

    def measure(file: str) -> Reach:
        worker = idle.get()
        try:
            return worker.measure(file)
        finally:
            idle.put(worker)

    def survives(mutant: Mutant, choice: int) -> bool:
        worker = idle.get()
        try:
            return worker.survives(mutant, choice, reach[mutant.file])
        finally:
            idle.put(worker)

    files = sorted({mutant.file for mutant, _ in mutants})
    with ThreadPoolExecutor(jobs) as pool:
        reach = dict(zip(files, pool.map(measure, files), strict=True))
        alive = pool.map(lambda one: survives(*one), mutants)
        for (mutant, choice), survived in zip(mutants, alive, strict=True):
            yield mutant, choice, survived


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=0, help="number of mutants to draw; 0: one for every place")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="files or folders, such as engine/ema.py report/")
    parser.add_argument("--jobs", type=int, default=1, help="number of mutants at a time")
    parser.add_argument("--list", action="store_true", help="print the number of places by file and stop")
    args = parser.parse_args()
    files = mutated_files(args.only)
    if args.list:
        for file in files:
            print(f"{len({mutant for mutant, _ in mutants_of(file)}):5} {file}  {' '.join(nearest_tests(file))}")
        return
    warm_up()
    begun, survivors = time.monotonic(), 0
    mutants = draw(files, args.num, args.seed)
    by_file: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        for mutant, choice, survives in try_all(mutants, Path(name), args.jobs):
            by_file[mutant.file][0] += 1
            if survives:
                survivors += 1
                by_file[mutant.file][1] += 1
                print(f"ALIVE {mutant.file}:{mutant.line}\n{difference(mutant, choice)}", flush=True)
    for file, (number, alive) in sorted(by_file.items()):
        print(f"{file}: {number - alive} of {number} killed")
    seconds = time.monotonic() - begun
    killed = len(mutants) - survivors
    print(
        f"{killed} of {len(mutants)} killed ({killed / max(1, len(mutants)):.1%}), {seconds / max(1, len(mutants)):.1f} s each"
    )


if __name__ == "__main__":
    main()
