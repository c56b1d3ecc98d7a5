"""The local engine: one warm process that has imported torch forks a child for each task.

The search starts that process, the pool, from the frozen code. They exchange JSON lines: the search writes
{"start": NAME, "argv": [...], "log": FILE, "environ": {...}} and {"stop": NAME}, the pool {"name": NAME, "code": N}.
When either side is gone the other ends, so that no child trains on alone.
"""

import contextlib
import gc
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, TypedDict

from include import EXIT_BUG, JOBS
from params import SearchKeys
from search.engines.base import Task, TaskEnd
from utils import die_with, num_cores, run_command

PATIENCE = 30  # seconds for a child to save and end


class StartOrder(TypedDict):
    start: str  # name of the task
    argv: list[str]
    log: str  # file for what it prints
    environ: dict[str, str]  # environment variables to set


class StopOrder(TypedDict):
    stop: str  # name of the task


class Result(TypedDict):
    name: str  # of the task
    code: int  # as Popen.returncode


# --- the side of the search -------------------------------------------------------------------------


class LocalEngine:
    """`num_slots` children at a time on this machine; where there are GPUs, each slot sees one of them."""

    def __init__(self, code: Path, parent: Path, num_slots: int, options: SearchKeys):
        self.num_slots = num_slots
        self.command = [sys.executable, str(code / "search_hyperparams.py"), "--serve"]
        self.logs = parent / JOBS
        self.gpus = visible_gpus()
        self.process: subprocess.Popen[bytes] | None = None
        self.slots: dict[str, int] = {}  # of the tasks under way
        self.rest = b""  # of a line that has not come to its end

    def start(self, tasks: Sequence[Task]) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        for task in tasks:
            slot = min(set(range(self.num_slots)) - set(self.slots.values()))
            environ = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
            self.slots[task.name] = slot
            log = str(self.logs / f"{task.name}.log")
            self._send({"start": task.name, "argv": task.argv, "log": log, "environ": environ})

    def stop(self, name: str) -> None:
        self._send({"stop": name})

    def wait(self, seconds: float) -> list[TaskEnd]:
        if self.process is None:
            return []
        ended = []
        for result in self._receive(seconds):
            self.slots.pop(result["name"], None)
            ended.append(TaskEnd(result["name"], result["code"]))
        if self.process.poll() is not None:  # it was killed: its children save and end
            ended += [TaskEnd(name, -signal.SIGKILL, "the pool process ended") for name in self.slots]
            self.slots.clear()
            self.process = None
        return ended

    def close(self) -> None:
        if self.process is None:
            return
        assert self.process.stdin
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(PATIENCE + 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _send(self, order: StartOrder | StopOrder) -> None:
        """Write an order to the pool, which begins with the first one."""
        if self.process is None:
            environ = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # numpy's threads would not survive a fork
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, env=environ, start_new_session=True)
            assert self.process.stdout
            os.set_blocking(self.process.stdout.fileno(), False)
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # wait() reports that the pool is gone
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def _receive(self, seconds: float) -> list[Result]:
        """The results that the pool wrote; waits at most `seconds` for the first."""
        assert self.process
        assert self.process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return []
        while chunk := self.process.stdout.read():
            self.rest += chunk
        *lines, self.rest = self.rest.split(b"\n")
        return [json.loads(line) for line in lines]


def default_slots() -> int:
    """One task for each GPU, else one."""
    return len(visible_gpus()) or 1


def cores_per_task(options: SearchKeys, num_slots: int) -> int:
    """Tasks share the cores of this machine."""
    return max(1, num_cores() // num_slots)


def visible_gpus() -> list[str]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them. Needs no torch."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [word for word in named.split(",") if word.strip() not in ("", "-1")]
    devices = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    return sorted(devices, key=int)


# --- the side of the pool ---------------------------------------------------------------------------


def serve(target: Callable[[list[str]], int | None]) -> int:
    """Fork a process that calls `target(argv)` for each task that stdin names, until stdin ends.

    The caller has imported everything that `target` needs, and has computed nothing: threads do not survive
    a fork.
    """
    die_with(os.getppid(), signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the search, which tells the pool
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # results alone go to stdout: what a library prints goes to stderr
    Pool(target, out).run()
    return 0


class Pool:
    """Forks a child for each order and reports how it ended, until stdin ends or SIGTERM comes."""

    def __init__(self, target: Callable[[list[str]], int | None], out: IO[bytes]):
        self.target = target
        self.out = out
        self.children: dict[int, str] = {}  # pid -> task
        self.is_over = False

    def run(self) -> None:
        # Children share the memory of what is imported; a garbage collector that walks over it would copy its pages.
        gc.collect()
        gc.freeze()
        # A signal (a child ended, SIGTERM) wakes the select below through a pipe.
        wake, alarm = os.pipe()
        os.set_blocking(alarm, False)
        signal.set_wakeup_fd(alarm)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end)
        # Orders come through stdin.
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            while not self.is_over:
                for key, _ in selector.select():
                    chunk = os.read(key.fd, 1 << 16)
                    if key.fd == wake:
                        self._reap()
                        continue
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        self._obey(json.loads(line))
                    self.is_over = self.is_over or not chunk
        self._stop_all()
        gc.unfreeze()  # at exit, libraries warn about objects that were not collected

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.is_over = True

    def _obey(self, order: StartOrder | StopOrder) -> None:
        """Fork a child, or ask one to save and end."""
        if "start" in order:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the child handles it in its own way
            pid = os.fork()
            if pid == 0:
                run_task(self.target, order)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            self.children[pid] = order["start"]
            return
        for pid, name in self.children.items():
            if name == order["stop"]:
                os.kill(pid, signal.SIGTERM)

    def _reap(self) -> None:
        """Report the children that have ended."""
        for pid in list(self.children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._report({"name": self.children.pop(pid), "code": os.waitstatus_to_exitcode(status)})

    def _report(self, result: Result) -> None:
        with contextlib.suppress(BrokenPipeError):  # the search is gone: stdin ends, too
            self.out.write(json.dumps(result).encode() + b"\n")

    def _stop_all(self) -> None:
        """Children save and end; stragglers are killed."""
        end = time.monotonic() + PATIENCE
        for pid in self.children:
            os.kill(pid, signal.SIGTERM)
        while self.children and time.monotonic() < end:
            time.sleep(0.02)
            self._reap()
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)


def run_task(target: Callable[[list[str]], int | None], order: StartOrder) -> None:
    """In the forked child: run `target` as a command of its own. Does not return."""
    code = EXIT_BUG
    try:
        # signals as a new process has them; SIGTERM when the pool is gone
        die_with(os.getppid(), signal.SIGTERM)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        # its own environment and streams
        os.environ.update(order["environ"])
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for new, old in ((null, 0), (log, 1), (log, 2)):
            os.dup2(new, old)
        # the command
        sys.argv[1:] = order["argv"]
        code = run_command(target, order["argv"])
        sys.stderr.flush()
    finally:
        os._exit(code)


def last_line(parent: Path, name: str) -> str:
    """The last line that a task printed, "" when there is none."""
    with contextlib.suppress(OSError, IndexError):
        text = (parent / JOBS / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return text.strip().splitlines()[-1].removeprefix("error: ")
    return ""
