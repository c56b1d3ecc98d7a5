"""The lock on an experiment folder: the kernel holds it for a process, and frees it when that ends."""

import contextlib
import fcntl
import os
import time
from pathlib import Path

PATIENCE = 5  # seconds to wait for children of a killed process

_HELD: set[int] = set()  # descriptors of the locks that this process holds


def _let_go() -> None:
    """In a forked child: a loader worker that outlives its parent must not hold the parent's lock."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_let_go)


class BusyError(Exception):
    """Another process has the lock; `pid` when it is one of this machine."""

    def __init__(self, pid: int | None):
        super().__init__(pid)
        self.pid = pid


def take(folder: Path, file: Path) -> int:
    """Lock `folder`; where folders cannot be locked (NFS), `file` in it, which must never be replaced.

    Does not wait: BusyError when another process has it. Returns the descriptor. OSError where nothing can be locked.
    """
    try:
        return _take(folder, os.O_RDONLY)
    except OSError:
        return _take(file, os.O_RDWR)  # NFS wants it writable


def _take(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags)
    end = time.monotonic() + PATIENCE
    try:
        while not _flock(descriptor):
            pid = _owner(os.fstat(descriptor).st_ino)
            if pid is None or is_alive(pid) or time.monotonic() > end:
                raise BusyError(pid)
            time.sleep(0.01)  # its process was killed while it forked: the child releases the lock as soon as it runs
    except BaseException:
        os.close(descriptor)
        raise
    _HELD.add(descriptor)
    return descriptor


def give_back(descriptor: int) -> None:
    """Release a lock of this process; in a child of the process that took it, do nothing."""
    if descriptor in _HELD:
        _HELD.remove(descriptor)
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(inode: int) -> int | None:
    """The process of this machine that locked a file, according to the kernel's table of locks."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and int(fields[5].split(":")[2]) == inode:
                return int(fields[4])
    return None


def is_alive(pid: int) -> bool:
    """True if a process of this machine exists and has not ended."""
    try:
        os.kill(pid, 0)
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:4]
    except PermissionError:
        return True
    except OSError:
        return False
