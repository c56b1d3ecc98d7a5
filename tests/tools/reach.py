"""Which tests reach a line of the kit and how long each takes, measured once per tree and kept outside the repository.

Each test module runs once, in a fork of a process that has imported what is slow to import (torch, scikit-learn, ...)
and nothing of the kit. A tracer notes the lines that each test runs, in its processes too (see lines.py); what a
fixture of wider scope runs counts for every test that uses it.
"""

import ast
import contextlib
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kit import ROOMS, ROOT, copy_repository
from lines import FOLDER, OUTPUT, LineTracer, environment_for_children

# They take minutes, on several processes or machines: measured last.
SLOW = ["tests/proofs/test_reliability.py", "tests/proofs/test_processes.py", "tests/proofs/test_distributed.py"]
SLOW += ["tests/proofs/test_notebooks.py", "tests/search/test_engines.py", "tests/folder/test_real_data.py"]
NEVER = ["tests/unit/test_tools.py", "tests/proofs/test_contributing.py"]  # they test the repository, not the kit
OWN_FILES = {"mutate.py", "mutants.py", "reach.py", "lines.py"}  # a change of these does not outdate the table
MODULE_SECONDS = 900  # a test module may take this long

Lines = dict[str, set[int]]  # file -> lines; a negative one is the first line of a function that ran as a whole


@dataclass
class ModuleReach:
    """What a test module says: the seconds and lines of each of its tests, and the files it imports."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, Lines] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        lines = {test: {file: sorted(some) for file, some in files.items()} for test, files in self.lines.items()}
        return json.dumps([self.seconds, lines, sorted(self.files), self.failed])

    @classmethod
    def from_json(cls, text: str) -> "ModuleReach":
        seconds, lines, files, failed = json.loads(text)
        sets = {test: {file: set(some) for file, some in of_test.items()} for test, of_test in lines.items()}
        return cls(seconds, sets, set(files), failed)


class Recorder:
    """A pytest plugin that notes the seconds and the traced lines of each test."""

    def __init__(self, tracer: LineTracer, output: Path):
        self.tracer, self.output = tracer, output
        self.reach = ModuleReach()
        self.current: Lines = {}
        self.of_fixture: dict[str, tuple[float, Lines]] = {}

    def drain(self) -> Lines:
        """The lines since the last call, of all processes."""
        lines: Lines = defaultdict(set)
        for text in self.output.read_text().splitlines():
            name, _, line = text.rpartition(" ")
            lines[name].add(int(line))
        os.truncate(self.output, 0)
        self.tracer.forget()
        self.reach.files.update(lines)
        return lines

    @staticmethod
    def merge(into: Lines, lines: Lines) -> None:
        for file, some in lines.items():
            into.setdefault(file, set()).update(some)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.drain()
        self.current = {}
        self.tracer.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        if fixturedef.scope == "function":
            return (yield)
        self.merge(self.current, self.drain())
        begun = time.monotonic()
        try:
            return (yield)
        finally:
            self.of_fixture[fixturedef.argname] = time.monotonic() - begun, self.drain()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        seconds, test = self.reach.seconds, report.nodeid
        if report.when == "call" and report.outcome == "passed":
            seconds[test] = report.duration
        if report.outcome == "failed":
            self.reach.failed.append(test)  # without any mutant: it can kill none

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        self.tracer.stop()
        self.merge(self.current, self.drain())
        for name in getattr(item, "fixturenames", ()):
            if name in self.of_fixture:
                seconds, lines = self.of_fixture[name]
                self.merge(self.current, lines)
                if item.nodeid in self.reach.seconds:
                    self.reach.seconds[item.nodeid] += seconds
        self.reach.lines[item.nodeid] = self.current

    def pytest_sessionfinish(self) -> None:
        for test in self.reach.failed:
            self.reach.seconds.pop(test, None)
        self.reach.lines = {test: lines for test, lines in self.reach.lines.items() if test in self.reach.seconds}


# --- forks of a warm process ------------------------------------------------------------------------


def warm_up() -> None:
    """Import what the tests import, and nothing of the kit."""
    os.environ.update(OMP_NUM_THREADS="1", NO_ALBUMENTATIONS_UPDATE="1", PYTHONDONTWRITEBYTECODE="1", MPLBACKEND="Agg")
    sys.dont_write_bytecode = True
    import albumentations  # noqa: F401
    import hypothesis  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import optuna  # noqa: F401
    import plotly.graph_objects  # noqa: F401
    import pydantic  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch._dynamo  # noqa: F401
    import torchvision  # noqa: F401


def run_pytest(copy: Path, arguments: list[str], plugins: list[object]) -> int:
    """In a child: pytest's exit code in a copy of the repository; what it prints goes to the copy's "output"."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    stream = os.open(copy.parent / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(stream, number)
    os.chdir(copy)
    sys.path[:] = [str(copy), str(copy / "tests/tools"), *(path for path in sys.path if not path.startswith(str(ROOT)))]
    for name in [name for name, module in sys.modules.items() if is_ours(module)]:
        del sys.modules[name]
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow", "--rootdir", str(copy), "--no-header"]
    options += ["--basetemp", str(copy.parent / "temp"), "-o", "tmp_path_retention_policy=none"]
    return int(pytest.main([*options, *arguments], plugins=plugins))


def is_ours(module: object) -> bool:
    path = getattr(module, "__file__", None) or ""
    return path.startswith(str(ROOT)) and "site-packages" not in path


def fast_folder() -> str | None:
    """A folder in memory, where there is one: tests write and delete many small files."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


class Copy:
    """A copy of the repository in which tests run."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self.root = copy_repository(folder / "kit")
        shared = ROOT.parent / "shared"
        if shared.exists():
            (folder / "shared").symlink_to(shared)

    def output(self) -> str:
        return (self.root.parent / "output").read_text(errors="replace")[-1500:]

    def write_bytecode(self) -> None:
        """Compile the kit and the tests of this copy, so that no mutant has to."""
        environment = {"PYTHONDONTWRITEBYTECODE": ""}
        self.in_a_fork(["--collect-only", "tests"], 300, bytecode=True, environment=environment)

    def in_a_fork(
        self,
        arguments: list[str],
        seconds: float,
        record: Path | None = None,
        bytecode: bool = False,
        environment: dict[str, str] | None = None,
    ) -> int | None:
        """Exit code of pytest, None when time was up. What its tests reach is written to `record`."""
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.setpgid(0, 0)
                sys.dont_write_bytecode = not bytecode
                os.environ.update(environment or {})
                code = self._record(arguments, record) if record else run_pytest(self.root, arguments, [])
            finally:
                os._exit(code)
        code = wait(pid, time.monotonic() + seconds)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # whatever the tests left behind
        return code

    def _record(self, arguments: list[str], record: Path) -> int:
        """In a child: run the tests with the tracer on, in their processes too."""
        output, hooks = self.root.parent / "lines", self.root.parent / "hooks"
        output.write_text("")
        hooks.mkdir(exist_ok=True)
        (hooks / "sitecustomize.py").write_text(environment_for_children(str(ROOT / "tests/tools")))
        os.environ.update({FOLDER: str(self.root), OUTPUT: str(output), "PYTHONPATH": str(hooks)})
        tracer = LineTracer(str(self.root), str(output))
        recorder = Recorder(tracer, output)
        tracer.start()  # what is imported while tests are collected
        code = run_pytest(self.root, arguments, [recorder])
        record.write_text(recorder.reach.to_json())
        return code


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


# --- the table --------------------------------------------------------------------------------------


def digest_of(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where the table is kept for this state of the kit and of what its tests share."""
    patterns = ["*.py", *(f"{room}/**/*.py" for room in ROOMS), "tests/conftest.py", "tests/tools/*.py"]
    paths = {path for pattern in patterns for path in ROOT.glob(pattern) if path.name not in OWN_FILES}
    return Path(tempfile.gettempdir()) / f"reach-{digest_of(paths)}"


def test_modules() -> list[str]:
    """All test modules, slow ones last."""
    names = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/**/test_*.py")]
    return sorted((name for name in names if name not in NEVER), key=lambda name: (name in SLOW, name))


def measure(copy: Copy, cache: Path, modules: list[str]) -> Iterator[tuple[str, ModuleReach]]:
    """The reach of each test module, from the cache or measured and put there."""
    cache.mkdir(exist_ok=True)
    for module in modules:
        kept = cache / f"{module.replace('/', '__')}-{digest_of([ROOT / module])}.json"
        if not kept.exists():
            code = copy.in_a_fork([module], MODULE_SECONDS, record=kept.with_suffix(".part"), bytecode=True)
            if code is None:
                print(f"{module}: not done after {MODULE_SECONDS} s, left out", flush=True)
                continue
            if not kept.with_suffix(".part").exists():
                raise RuntimeError(f"{module}: {copy.output()}")
            kept.with_suffix(".part").replace(kept)
        reach = ModuleReach.from_json(kept.read_text())
        if reach.failed:
            print(f"{module}: left out, failing without a mutant: {' '.join(reach.failed)}", flush=True)
        yield module, reach


class Table:
    """Which tests reach a line, for all files of the kit."""

    def __init__(self, modules: dict[str, ModuleReach]):
        self.seconds: dict[str, float] = {}
        self.by_line: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.importing: dict[str, set[str]] = defaultdict(set)
        for module, reach in modules.items():
            self.seconds |= reach.seconds
            for test, files in reach.lines.items():
                for file, lines in files.items():
                    for line in lines:
                        self.by_line[file][line].add(test)
            for file in reach.files:
                self.importing[file].add(module)

    def tests_for(self, file: str, start: int, end: int, at_import: bool) -> list[str]:
        """The tests that run one of these lines, or import the file if it is `at_import`; the fastest first."""
        if at_import:
            near = {module for module in self.importing[file] if imports(module, file)}
            modules = self.importing[file]
            tests = {test for test in self.seconds if test.split("::")[0] in modules}
            return sorted(tests, key=lambda test: (test.split("::")[0] not in near, self.seconds[test]))
        by_line = self.by_line[file]
        tests = set().union(*(by_line.get(line, ()) for line in range(start, end + 1)))
        for first, last in functions(file):
            if first <= end and start <= last:
                tests |= by_line.get(-first, set())
        return sorted(tests, key=lambda test: self.seconds[test])


def imports(test_module: str, file: str) -> bool:
    """Whether the test module names the module of the kit in one of its imports."""
    dotted = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for node in ast.walk(ast.parse((ROOT / test_module).read_text())):
        if isinstance(node, ast.Import) and any(alias.name == dotted for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom):
            names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            if dotted in names:
                return True
    return False


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
OWN_CODE = (*FUNCTIONS, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def functions(file: str) -> list[tuple[int, int]]:
    """(first line, last line) of everything in a file that has a code object of its own."""
    found = []
    for node in ast.walk(ast.parse((ROOT / file).read_bytes())):
        if isinstance(node, OWN_CODE):
            decorators = getattr(node, "decorator_list", [])
            first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
            found.append((first, node.end_lineno or node.lineno))
    return found
