"""One task on a node of a cluster: a process of train.py, and the claim on its folder.

Sent to the node by value, so that nothing of the kit needs to be installed there: the standard library alone.

The cluster may lose sight of a node on which a task is alive, and begin the task again elsewhere. Locks of the
kernel reach other hosts on some file systems only, so attempts at one task also speak through two files in the
common folder. NAME.claim holds the token of the latest attempt: whoever finds another token there than his own
has his process save and end. NAME.beat says that the process of an attempt is alive: it changes every two
seconds, and is removed when the process has ended. A new attempt begins when there is no beat, or when it has not
changed for 30 seconds by its own clock.
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

LOOK, BEAT, SILENCE = 0.5, 2.0, 30.0  # seconds: between two looks, between two beats, until nobody is there
PATIENCE = 60.0  # seconds for a process to save and end
ENDED = 128 + signal.SIGTERM  # as train.py when it is asked to end


class Claim:
    """The right to train what `base` names, by the files base.claim and base.beat."""

    def __init__(self, base: Path):
        self.claim, self.beats = base.with_name(f"{base.name}.claim"), beat_file(base.parent, base.name)
        self.token, self.count, self.due = uuid.uuid4().hex, 0, 0.0

    def take(self) -> bool:
        """Wait until whoever had it has ended or is silent. False when a later attempt has claimed it meanwhile."""
        replace(self.claim, self.token)
        last, since = "", time.monotonic()
        while self.is_ours() and (beat := read(self.beats)):
            if beat != last:
                last, since = beat, time.monotonic()
            elif time.monotonic() - since > SILENCE:
                break
            time.sleep(LOOK)
        return self.is_ours()

    def is_ours(self) -> bool:
        return read(self.claim) in (self.token, "")  # "": it cannot be read now

    def beat(self) -> None:
        if time.monotonic() >= self.due:
            self.count, self.due = self.count + 1, time.monotonic() + BEAT
            replace(self.beats, f"{self.token} {self.count}")

    def give_back(self) -> None:
        if read(self.beats).startswith(self.token):
            self.beats.unlink(missing_ok=True)


def read(path: Path) -> str:
    """The text of a file, "" where there is none."""
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    temporary.write_text(text)
    temporary.replace(path)


def beat_file(jobs: Path, name: str) -> Path:
    """What changes while a task is alive."""
    return jobs / f"{name}.beat"


def stop_file(jobs: Path, name: str) -> Path:
    """Where it is written that a task is to save and end."""
    return jobs / f"{name}.stop"


def carry_out(words: Sequence[str], cwd: str, jobs: str, name: str, kept: Sequence[str]) -> int:
    """The exit code of `python words` in `cwd`, whose output goes to jobs/NAME.log; negative: killed by that signal.

    `kept`: the names of the environment variables that it gets.
    """
    claim, stop = Claim(Path(jobs) / name), stop_file(Path(jobs), name)
    if stop.exists() or not claim.take():
        return ENDED
    environ = {key: value for key, value in os.environ.items() if key in kept}
    die = partial(ctypes.CDLL(None).prctl, 1, signal.SIGTERM) if sys.platform == "linux" else None  # PR_SET_PDEATHSIG
    claim.beat()
    with open(Path(jobs) / f"{name}.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=cwd, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, preexec_fn=die,
        )  # fmt: skip
    asked = 0.0
    try:
        while process.poll() is None:
            time.sleep(LOOK)
            claim.beat()
            if not asked and (stop.exists() or not claim.is_ours()):
                asked = time.monotonic()
                process.terminate()
            if asked and time.monotonic() - asked > PATIENCE:
                process.kill()
        return process.returncode
    finally:
        if process.poll() is None:  # this worker has to end
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
        claim.give_back()
