"""The kit's commands as real processes without the seconds of their imports: forks of this warm process.

A command may run the code of another tree than this one (a changed copy of the kit, a frozen one in a folder): the
fork forgets the kit's modules and imports that tree's. Processes that a command starts itself (`--code folder`, a
search's pool) are forks too. Files, signals, locks and exit codes are those of a command that a user types.
"""

import contextlib
import fcntl
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kit import ROOMS, ROOT

SECONDS = 60  # a command that takes longer hangs
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
HUNG = 124
PIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class Trouble:
    """What disturbs a command: a signal when it is about to change files for the Nth time or after N ms, or a limit."""

    kind: str  # "signal" (at the Nth change), "late" (after N ms), "limit" (of the size of a file, N bytes)
    number: int
    signal: int = signal.SIGKILL


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `code`: -N after signal N, 124 when it hung."""

    code: int
    output: str


def warm_up() -> None:
    """Import everything that the commands import. Compute nothing: threads do not survive a fork."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    sys.path[:0] = [str(ROOT)]
    import albumentations  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import optuna  # noqa: F401
    import plotly.graph_objects  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch._dynamo  # noqa: F401
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    import train  # noqa: F401
    from folder import provenance

    provenance.surroundings()  # it asks git and lists the installed packages: once for all commands
    FigureCanvasAgg.print_png = write_blank  # curves are three quarters of the time of a short training


def write_blank(self: object, filename_or_obj: Any, *, metadata: object = None, pil_kwargs: object = None) -> None:
    """In place of drawing a figure: one white pixel."""
    from PIL import Image

    Image.new("L", (1, 1), 255).save(filename_or_obj, "png")


# --- in the fork -----------------------------------------------------------------------------------------


def use_tree(tree: Path) -> None:
    """Import the kit from `tree` from now on."""
    sys.path.insert(0, str(tree))
    kits = {path.stem for path in ROOT.glob("*.py")} | set(ROOMS)
    for name in [name for name in sys.modules if name.partition(".")[0] in kits]:
        del sys.modules[name]


def run_script(script: Path, argv: Sequence[str]) -> NoReturn:
    """In a fork: run a root script as Python does, and exit with its code."""
    code = 70
    try:
        sys.argv = [str(script), *argv]
        if script.parent == ROOT:
            import importlib

            from utils import run_command

            code = run_command(importlib.import_module(script.stem).main, list(argv))
        else:
            use_tree(script.parent)
            runpy.run_path(str(script), run_name="__main__")
            code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class ForkedPopen(subprocess.Popen):
    """A Popen that forks this warm process where the command is a script of the kit."""

    def _execute_child(self, args: Any, *rest: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]  (not public)
        words = [args] if isinstance(args, str) else [os.fsdecode(word) for word in args]
        if words[0] != sys.executable or len(words) < 2 or not words[1].endswith(".py"):
            return super()._execute_child(args, *rest)  # pyright: ignore[reportAttributeAccessIssue]
        preexec, _, _, cwd, env = rest[1], rest[2], rest[3], rest[4], rest[5]
        streams = rest[9:15]  # stdin, stdout, stderr: what the child reads, what we write, ...
        new_session = rest[-2]
        for thread in threading.enumerate():  # one that is importing would leave its lock to the fork
            if thread is not threading.current_thread():
                thread.join(5)
        self.pid = os.fork()
        if self.pid == 0:
            for others in (streams[1], streams[2], streams[4]):
                if others > 2:
                    os.close(others)
            start_fork(words, (streams[0], streams[3], streams[5]), env, cwd, new_session, preexec)
        self._child_created = True
        for own in (streams[0], streams[3], streams[5]):
            if own > 2:
                with contextlib.suppress(OSError):
                    os.close(own)
        return None


def start_fork(
    words: list[str],
    streams: tuple[int, int, int],
    env: Mapping[str, str] | None,
    cwd: str | None,
    new_session: bool,
    preexec: Callable[[], None] | None,
) -> NoReturn:
    """In a fork of a fork: become the process that `words` would start."""
    if new_session:
        os.setsid()
    for number, stream in enumerate(streams):
        if stream >= 0:
            os.dup2(stream, number)
    fresh_streams()
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    if cwd:
        os.chdir(cwd)
    if preexec:
        preexec()
    run_script(Path(words[1]).absolute(), words[2:])


def fresh_streams() -> None:
    """Python's streams on the file descriptors 0, 1 and 2, and signals as a new process has them."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        setattr(sys, name, os.fdopen(number, "w", buffering=1, errors="backslashreplace", closefd=False))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    import logging

    logging.getLogger("train").handlers.clear()


def disturb(trouble: Trouble) -> None:
    """In a fork: prepare the trouble that this process will have."""
    if trouble.kind == "limit":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (trouble.number, trouble.number))
    if trouble.kind == "signal":
        count, owner = 0, os.getpid()

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal count
            changes = event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & WRITING)
            if changes and os.getpid() == owner:
                count += 1
                if count == trouble.number:
                    os.kill(owner, trouble.signal)

        sys.addaudithook(hook)


# --- around it -------------------------------------------------------------------------------------------


@dataclass
class Running:
    """A command that was started."""

    pid: int
    output: int  # descriptor of a pipe that holds all it printed
    trouble: Trouble | None

    def wait(self) -> Outcome:
        if self.trouble and self.trouble.kind == "late":
            self._wait(self.trouble.number / 1000)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, self.trouble.signal)
        code = self._wait(SECONDS)
        if code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._wait(SECONDS)
            code = HUNG
        content = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.output, PIPE_BYTES):
                content += chunk
        os.close(self.output)
        return Outcome(code, content.decode(errors="replace"))

    _code: int | None = None

    def _wait(self, seconds: float) -> int | None:
        """Its exit code, None when it still runs after `seconds`."""
        end = time.monotonic() + seconds
        while self._code is None and time.monotonic() < end:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self._code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.001)
        return self._code


def start(
    script: Path, argv: Sequence[object], *, trouble: Trouble | None = None, environ: Mapping[str, str] | None = None
) -> Running:
    """Start `python script argv` in a fork, in a process group of its own."""
    output, descriptor = os.pipe()  # a limit of the size of files does not hold for it
    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(output, False)
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            null = os.open(os.devnull, os.O_RDONLY)
            for number, stream in enumerate((null, descriptor, descriptor)):
                os.dup2(stream, number)
            fresh_streams()
            os.environ.update(environ or {})
            subprocess.Popen = ForkedPopen
            os.execve = replace_process
            if trouble:
                disturb(trouble)
            run_script(script, [str(word) for word in argv])
        finally:
            os._exit(70)
    os.close(descriptor)
    return Running(pid, output, trouble)


def replace_process(program: str, words: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """os.execve for `--code folder`: the same process becomes another script of another tree."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ.update(environ)
    run_script(Path(words[1]).absolute(), list(words[2:]))


def run(
    script: Path, argv: Sequence[object], *, trouble: Trouble | None = None, environ: Mapping[str, str] | None = None
) -> Outcome:
    return start(script, argv, trouble=trouble, environ=environ).wait()
