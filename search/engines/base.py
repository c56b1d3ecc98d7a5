"""The interface between a search and its engines. Engines only schedule; all state is in the folders."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from folder.folder import Folder


@dataclass(frozen=True)
class Task:
    """One child folder to train: `train.py argv`, run by the code that the search froze."""

    name: str  # of the child folder; unique among the tasks under way
    folder: Path
    argv: list[str]


@dataclass(frozen=True)
class TaskEnd:
    """The end of a task."""

    name: str
    code: int  # as Popen.returncode: negative when a signal ended it; a lost node is -9
    message: str = ""  # what the engine knows about it and the folder does not


class SearchEngine(Protocol):
    """Runs the tasks of one search somewhere. After close() none of them runs."""

    num_slots: int  # how many tasks run at a time

    def start(self, tasks: Sequence[Task]) -> None:
        """Begin the tasks, or queue them."""

    def wait(self, seconds: float) -> list[TaskEnd]:
        """The tasks that ended since the last call; returns [] after `seconds` without one."""
        ...

    def stop(self, name: str) -> None:
        """Ask a task to save and end; does nothing when it has ended already."""

    def close(self) -> None:
        """Have every task that still runs save and end, and wait for it."""


def recorded_exit_code(folder: Path) -> int:
    """The exit code that a task left in its folder, for an engine that knows none; -9 when it was killed at work."""
    status = Folder(folder).status()
    return -signal.SIGKILL if status["state"] in ("running", "created") else int(status.get("code", 0))
