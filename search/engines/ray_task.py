"""One task on a node of a cluster: a process of train.py, and the claim on its folder.

This module is sent to the node by value, so that none of the kit needs to be installed there; it imports the
standard library alone.

The cluster may lose sight of a node on which a task is alive, and begin the task again elsewhere. Kernel locks
reach other hosts on some file systems only, so two attempts at one task also communicate through two files in the
common folder. NAME.claim holds the token of the latest attempt: an attempt that finds another token there has its
process save and end. NAME.beat shows that the process of an attempt is alive: it changes every two seconds and is
removed when the process has ended. A new attempt begins when there is no such file, or when it has not changed for
30 seconds by the new attempt's clock.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path

LOOK = 0.5  # seconds between two looks at the files
BEAT = 2.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without a sign of life after which an attempt counts as dead
PATIENCE = 60.0  # seconds for a process to save and end
ENDED = 128 + signal.SIGTERM  # as train.py when it is asked to end


class Claim:
    """The right to train what `base` names, by the files base.claim and base.beat."""

    def __init__(self, base: Path):
        self.claim = base.with_name(f"{base.name}.claim")
        self.beats = beat_file(base.parent, base.name)
        self.token = uuid.uuid4().hex
        self.num_beats = 0
        self.due = 0.0  # when the next sign of life is

    def take(self) -> bool:
        """Wait until the attempt before has ended or is silent. False when a later one has claimed it meanwhile."""
        replace(self.claim, self.token)
        last = ""
        since = time.monotonic()
        while self.is_ours() and (beat := read(self.beats)):
            if beat != last:
                last = beat
                since = time.monotonic()
            elif time.monotonic() - since > SILENCE:
                break
            time.sleep(LOOK)
        return self.is_ours()

    def is_ours(self) -> bool:
        return read(self.claim) in (self.token, "")  # "": the file cannot be read at present

    def beat(self) -> None:
        """Write a sign of life, when one is due."""
        if time.monotonic() >= self.due:
            self.num_beats += 1
            self.due = time.monotonic() + BEAT
            replace(self.beats, f"{self.token} {self.num_beats}")

    def give_back(self) -> None:
        if read(self.beats).startswith(self.token):
            self.beats.unlink(missing_ok=True)


def read(path: Path) -> str:
    """The text of a file, "" where there is none."""
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def replace(path: Path, text: str) -> None:
    """Write a file so that readers see the old text or the new one, never half."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    temporary.write_text(text)
    temporary.replace(path)


def beat_file(jobs: Path, name: str) -> Path:
    """The file that changes while a task is alive."""
    return jobs / f"{name}.beat"


def stop_file(jobs: Path, name: str) -> Path:
    """The file whose presence asks a task to save and end."""
    return jobs / f"{name}.stop"


def run_train(words: Sequence[str], cwd: str, jobs: str, name: str, forwarded: Sequence[str]) -> int:
    """Run `python words` in `cwd`, with its output in jobs/NAME.log. Returns its exit code; negative: a signal's.

    `forwarded`: names of the environment variables that it gets.
    """
    # one process at a time on this folder, unless the task has been stopped before its turn
    claim = Claim(Path(jobs) / name)
    stop = stop_file(Path(jobs), name)
    if stop.exists() or not claim.take():
        return ENDED
    # start the process; it ends with this worker
    environ = {key: value for key, value in os.environ.items() if key in forwarded}
    die = partial(ctypes.CDLL(None).prctl, 1, signal.SIGTERM) if sys.platform == "linux" else None  # PR_SET_PDEATHSIG
    claim.beat()
    with open(Path(jobs) / f"{name}.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die,
        )
    try:
        return _watch(process, claim, stop)
    finally:
        if process.poll() is None:  # this worker has to end
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
        claim.give_back()


def _watch(process: subprocess.Popen[bytes], claim: Claim, stop: Path) -> int:
    """Wait for the process, showing that it is alive; have it save and end when it is stopped or overtaken."""
    asked = 0.0  # when it was asked to end
    while process.poll() is None:
        time.sleep(LOOK)
        claim.beat()
        if not asked and (stop.exists() or not claim.is_ours()):
            asked = time.monotonic()
            process.terminate()
        if asked and time.monotonic() - asked > PATIENCE:
            process.kill()
    return process.returncode
