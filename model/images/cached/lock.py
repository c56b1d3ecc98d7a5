"""One process builds a cache at a time. The others wait, and say for whom; they do not wait for one that is stopped."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from utils import say

PATIENCE = 60.0  # seconds that another process may make no progress with the same cache
STOPPED_PATIENCE = 10.0  # seconds after it was seen that the process is stopped
SAY_AFTER = 5.0  # seconds of waiting before a line says for whom


class Builder(NamedTuple):
    """The process that holds the lock."""

    pid: int  # 0 when it is not known
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "another process"

    def is_stopped(self) -> bool:
        """Whether it is a process of this machine that was stopped by a signal (Ctrl-Z, kill -STOP)."""
        if not self.pid or self.host != socket.gethostname():
            return False
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text()
        except (OSError, ValueError):
            return False
        return status.rpartition(")")[2].split()[:1] in (["T"], ["t"])


@dataclass
class Lock:
    """The result of trying to lock."""

    is_busy: bool  # another process has the lock
    tick: Callable[[], None] = lambda: None  # shows waiting processes that this one makes progress


@contextlib.contextmanager
def lock_file(path: Path, patience: float) -> Iterator[Lock]:
    """Lock `path` until the end of the block or of this process; the kernel frees it.

    Where files cannot be locked, nothing is locked. TimeoutError when the process that has the lock makes no progress
    for `patience` seconds, or is stopped. With `patience` 0 there is no waiting and no error.
    """
    descriptor = _open_lock(path)
    if descriptor is None:
        yield Lock(is_busy=False)
        return
    try:
        is_busy = not _acquire(descriptor, patience)
        if is_busy:
            yield Lock(is_busy=True)
        else:
            _sign(descriptor)
            yield Lock(is_busy=False, tick=partial(_touch, descriptor))
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int | None:
    """None where there can be no such file."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            path.rmdir()
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    with contextlib.suppress(OSError):  # somebody else's, in a cache that is shared
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    return None


def _acquire(descriptor: int, patience: float) -> bool:
    """Whether the file could be locked, or cannot be locked by anybody."""
    waiting = Waiting(descriptor, patience)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not patience:
                return False
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
                return True
            raise
        waiting.check()
        time.sleep(0.02)


class Waiting:
    """Watches the process that has the lock, says so once it takes long, and gives up when it makes no progress."""

    def __init__(self, descriptor: int, patience: float):
        self.descriptor = descriptor
        self.patience = patience
        self.begin = time.monotonic()
        self.progress: int | None = None  # the builder touches the file
        self.since = self.begin  # of the last progress
        self.stopped_since: float | None = None
        self.is_said = False

    def check(self) -> None:
        """TimeoutError when there is no point in waiting on."""
        now = time.monotonic()
        # Has it made progress?
        progress = os.fstat(self.descriptor).st_mtime_ns
        if progress != self.progress:
            self.progress = progress
            self.since = now
        builder = read_builder(self.descriptor)
        if now - self.since > self.patience:
            self._give_up(f"{builder} builds this cache and has made no progress for {self.patience:g} seconds")
        # Is it stopped?
        if not builder.is_stopped():
            self.stopped_since = None
        elif self.stopped_since is None:
            self.stopped_since = now
            self.is_said = False
        elif now - self.stopped_since > STOPPED_PATIENCE:
            self._give_up(f"{builder} builds this cache and is stopped")
        # Say for whom we wait.
        if now - self.begin > SAY_AFTER and not self.is_said:
            self.is_said = True
            say(self._describe(builder))

    def _describe(self, builder: Builder) -> str:
        if self.stopped_since is not None:
            return (
                f"{builder} builds the cache of decoded images that is needed here, and is stopped: continue it with "
                f"kill -CONT {builder.pid}, or end it with kill -9 {builder.pid}; waiting {STOPPED_PATIENCE:g} seconds"
            )
        return (
            f"waiting for {builder}, which builds the cache of decoded images that is needed here; "
            f"giving up when it makes no progress for {self.patience:g} seconds"
        )

    def _give_up(self, reason: str) -> None:
        raise TimeoutError(errno.ETIMEDOUT, reason)


def read_builder(descriptor: int) -> Builder:
    """Who wrote its name into the lock file."""
    with contextlib.suppress(OSError, ValueError):
        pid, host = os.pread(descriptor, 300, 0).decode().split()
        return Builder(int(pid), host)
    return Builder(0, "")


def _sign(descriptor: int) -> None:
    """Write who has the lock into the file."""
    with contextlib.suppress(OSError):  # a full disk, or somebody else's file
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)


def _touch(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.utime(descriptor)
