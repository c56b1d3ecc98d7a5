"""The local engine: one warm process that has imported torch forks a child for each task.

The search starts the frozen code's own copy of that process, so that what runs is the code that was frozen.
They speak JSON lines: {"start": NAME, "argv": [...], "log": FILE, "environ": {...}} and {"stop": NAME} go in,
{"name": NAME, "code": N} comes out. Whoever loses the other ends: no orphan trains on.
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
from typing import IO, Any

from include import EXIT_BUG
from search.engines.base import LOGS, Ended, Task
from utils import die_with, run_command

PATIENCE = 30  # seconds for a child to save and end


# --- the side of the search -------------------------------------------------------------------------


class LocalEngine:
    """`num_slots` children at a time on this machine; with `gpus`, each slot sees one of them."""

    def __init__(self, command: Sequence[str], parent: Path, num_slots: int, gpus: Sequence[str] = ()):
        self.command, self.logs = list(command), parent / LOGS
        self.num_slots, self.gpus = num_slots, list(gpus)
        self.process: subprocess.Popen[bytes] | None = None
        self.slots: dict[str, int] = {}  # of the tasks under way
        self.rest = b""

    def start(self, tasks: Sequence[Task]) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        for task in tasks:
            slot = min(set(range(self.num_slots)) - set(self.slots.values()))
            environ = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
            self.slots[task.name] = slot
            log = str(self.logs / f"{task.name}.log")
            self._tell({"start": task.name, "argv": task.argv, "log": log, "environ": environ})

    def stop(self, name: str) -> None:
        self._tell({"stop": name})

    def wait(self, seconds: float) -> list[Ended]:
        if self.process is None:
            return []
        ended = []
        for line in self._lines(seconds):
            self.slots.pop(line["name"], None)
            ended.append(Ended(line["name"], line["code"]))
        if self.process.poll() is not None:  # killed: its children save and end
            ended += [Ended(name, -signal.SIGKILL, "the pool process ended") for name in self.slots]
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

    def _tell(self, message: dict[str, Any]) -> None:
        if self.process is None:
            environ = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # numpy's threads would not live through a fork
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, env=environ, start_new_session=True)
            assert self.process.stdout
            os.set_blocking(self.process.stdout.fileno(), False)
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # wait() says so
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def _lines(self, seconds: float) -> list[dict[str, Any]]:
        """What the pool said; waits at most so long for the first word."""
        assert self.process and self.process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return []
        while chunk := self.process.stdout.read():
            self.rest += chunk
        *lines, self.rest = self.rest.split(b"\n")
        return [json.loads(line) for line in lines]


def visible_gpus() -> list[str]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them. Needs no torch."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [word for word in named.split(",") if word.strip() not in ("", "-1")]
    devices = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    return sorted(devices, key=int)


# --- the side of the pool ---------------------------------------------------------------------------


def serve(target: Callable[[list[str]], int | None]) -> int:
    """Fork a process that calls `target(argv)` for each task that stdin names, until stdin ends.

    Everything that `target` needs is to be imported by now, and nothing computed: threads do not live
    through a fork.
    """
    die_with(os.getppid(), signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the search, which tells the pool
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what somebody prints is no message
    Pool(target, out).run()
    return 0


class Pool:
    def __init__(self, target: Callable[[list[str]], int | None], out: IO[bytes]):
        self.target, self.out = target, out
        self.children: dict[int, str] = {}  # pid -> task
        self.is_over = False

    def run(self) -> None:
        gc.collect()
        gc.freeze()  # a child that looks for cycles among what is imported here would copy its pages
        wake, alarm = os.pipe()
        os.set_blocking(alarm, False)
        signal.set_wakeup_fd(alarm)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end)
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
        gc.unfreeze()  # for the end: libraries complain of what is left over

    def _end(self, *_: Any) -> None:
        self.is_over = True

    def _obey(self, message: dict[str, Any]) -> None:
        if "start" in message:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # it is for the child from its first moment
            pid = os.fork()
            if pid == 0:
                run_task(self.target, message)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            self.children[pid] = message["start"]
        for pid, name in self.children.items():
            if name == message.get("stop"):
                os.kill(pid, signal.SIGTERM)

    def _reap(self) -> None:
        for pid in list(self.children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._say({"name": self.children.pop(pid), "code": os.waitstatus_to_exitcode(status)})

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the search is gone: stdin ends, too
            self.out.write(json.dumps(message).encode() + b"\n")

    def _stop_all(self) -> None:
        """Children save and end; who does not is killed."""
        end = time.monotonic() + PATIENCE
        for pid in self.children:
            os.kill(pid, signal.SIGTERM)
        while self.children and time.monotonic() < end:
            time.sleep(0.02)
            self._reap()
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)


def run_task(target: Callable[[list[str]], int | None], message: dict[str, Any]) -> None:
    """In the forked child: a command of its own. Does not return."""
    code = EXIT_BUG
    try:
        die_with(os.getppid(), signal.SIGTERM)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.environ.update(message["environ"])
        log = os.open(message["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for new, old in ((null, 0), (log, 1), (log, 2)):
            os.dup2(new, old)
        sys.argv[1:] = message["argv"]
        code = run_command(target, message["argv"])
        sys.stderr.flush()
    finally:
        os._exit(code)


def last_words(parent: Path, name: str) -> str:
    """The last line of what a task printed, "" when there is none."""
    with contextlib.suppress(OSError, IndexError):
        text = (parent / LOGS / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return text.strip().splitlines()[-1].removeprefix("error: ")
    return ""
