"""What a search hands to an engine, and what an engine says of it. Engines schedule; the folders remember."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from folder.folder import Folder
from params import Search

LOGS = "record/jobs"  # of the parent folder: what its tasks print, and what their engine writes down
KEPT = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "SSL_CERT_FILE", "http_proxy", "https_proxy", "no_proxy",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME",
)  # fmt: skip  # the environment variables that reach a task on another machine


@dataclass(frozen=True)
class Task:
    """One child folder to train: `train.py argv`, by the code that the search froze."""

    name: str  # of the child folder; unique among the tasks under way
    folder: Path
    argv: list[str]


@dataclass(frozen=True)
class Ended:
    """A task that runs no longer."""

    name: str
    code: int  # as Popen.returncode: negative when a signal ended it; a lost node is -9
    message: str = ""  # what the engine knows of it and the folder does not


class Engine(Protocol):
    """Runs tasks somewhere. A context of one search: close() leaves nothing of it running."""

    num_slots: int  # so many tasks at a time

    def start(self, tasks: Sequence[Task]) -> None:
        """Begin them, or queue them."""

    def wait(self, seconds: float) -> list[Ended]:
        """What ended since the last call; [] when nothing did for `seconds`."""
        ...

    def stop(self, name: str) -> None:
        """Ask a task to save and end. Nothing happens when it has ended already."""

    def close(self) -> None:
        """Have everything of this engine that still runs save and end."""


def stated_cores(search: Search) -> int:
    """Cores that a task gets on a cluster; 0 for the local engine, whose tasks share this machine's."""
    asked = {"local": 0, "slurm": search.slurm.get("cpus_per_task", 1), "ray": search.ray.get("num_cpus", 1)}
    cores = asked[search.engine]
    return max(1, int(cores)) if search.engine != "local" and isinstance(cores, int | float) else 0


def end_of(folder: Path) -> int:
    """The exit code that a task's folder speaks of, when its engine knows none; -9 when it was killed at work."""
    status = Folder(folder).status()
    return -signal.SIGKILL if status["state"] in ("running", "created") else int(status.get("code", 0))
