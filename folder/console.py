"""What a run prints also goes into its folder."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from include import STDERR, STDOUT, TRAIN_LOG
from utils import write_atomic

log = logging.getLogger("train")


class Tee(io.TextIOBase):
    """A stream whose text also goes to a file. Losing the console never stops a run."""

    def __init__(self, stream: Any, path: Path):
        self.stream = stream
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (it lives as long as the process)

    def write(self, text: str) -> int:
        self.file.write(text)
        self.file.flush()
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            self.stream.write(text.encode("ascii", "replace").decode())
        except (BrokenPipeError, ValueError, OSError):
            self.stream = open(os.devnull, "w")  # noqa: SIM115 (it lives as long as the process)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError, OSError):
            self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def close_copy(self) -> Any:
        self.flush()
        self.file.close()
        return self.stream


def open_log(folder: Path, to_stderr: bool = False) -> None:
    """Everything printed from now on also goes to train.log, record/stdout.txt and record/stderr.txt of `folder`."""
    # a copy by hard links must not make the original's files grow
    for name in (STDOUT, STDERR, TRAIN_LOG):
        break_hard_link(folder / name)
    # the streams
    sys.stdout = Tee(sys.stdout, folder / STDOUT)
    sys.stderr = Tee(sys.stderr, folder / STDERR)
    # the log: on the screen and in its file
    file = logging.FileHandler(folder / TRAIN_LOG, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    screen = logging.StreamHandler(sys.stderr if to_stderr else sys.stdout)
    screen.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [file, screen]
    log.setLevel(logging.INFO)
    log.propagate = False
    # what goes only into the file
    only_file = logging.getLogger("train.file")
    only_file.handlers[:] = [file]
    only_file.propagate = False


def name_some(names: Sequence[str], most: int = 4) -> str:
    """The first `most` names, and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def break_hard_link(path: Path) -> None:
    """Give a file that has several names a copy of its own, before something is appended to it."""
    if path.is_file() and path.stat().st_nlink > 1:
        write_atomic(path, path.read_bytes())


def close_log() -> None:
    """Close what open_log opened; the streams of this process are its own again."""
    for handler in log.handlers:
        handler.close()
    log.handlers.clear()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Tee):
            setattr(sys, name, stream.close_copy())
