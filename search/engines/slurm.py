"""The tasks of a search as Slurm jobs: those that start together are one array. How jobs work: engine/use/submit.py."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from engine.use.submit import SlurmJob, SlurmQueue
from include import JOBS
from params import SearchKeys
from search.engines.base import Task, TaskEnd, recorded_exit_code

LOOK = 5.0  # seconds between two looks at the queue
PATIENCE = 60.0  # seconds for cancelled jobs to save and end
DEFAULT_SLOTS = 64  # tasks at a time, when search.parallel does not say


class SlurmEngine:
    """See search/engines/base.py. What start() is given until the next wait() becomes one array.

    A search that ends without close() leaves its jobs to Slurm; the next one on the same folder takes them over.
    """

    def __init__(self, code: Path, parent: Path, num_slots: int, options: SearchKeys):
        self.num_slots = num_slots
        self.script = str((code / "train.py").absolute())
        self.queue = SlurmQueue(parent / JOBS / "slurm", options.slurm, num_slots)
        self.waiting: dict[str, Task] = {}  # not submitted yet
        self.running: dict[str, tuple[Task, SlurmJob]] = {}
        self.ended: list[TaskEnd] = []
        self.looked = -LOOK

    def start(self, tasks: Sequence[Task]) -> None:
        self.waiting |= {task.name: task for task in tasks}

    def wait(self, seconds: float) -> list[TaskEnd]:
        self._submit()
        end = time.monotonic() + seconds
        while not self.ended and self.running:
            if time.monotonic() - self.looked >= LOOK:
                self._look()
                self.looked = time.monotonic()
            elif time.monotonic() >= end:
                break
            else:
                time.sleep(max(0.0, min(0.2, end - time.monotonic())))
        ended = self.ended
        self.ended = []
        return ended

    def stop(self, name: str) -> None:
        if self.waiting.pop(name, None):
            self.ended.append(TaskEnd(name, 143, "not submitted yet"))
        elif name in self.running:
            self.queue.cancel([self.running[name][1]])

    def close(self) -> None:
        self.waiting.clear()
        self.queue.cancel([job for _, job in self.running.values()])
        end = time.monotonic() + PATIENCE
        while self.running and time.monotonic() < end:
            self._look()
            time.sleep(0.5)

    def _submit(self) -> None:
        """Submit the waiting tasks as one array, except those that an earlier search has queued."""
        if not self.waiting:
            return
        known = self.queue.look()
        if known is None:
            return  # Slurm is asked again at the next wait
        for name in list(self.waiting):
            if name in known and not known[name].has_ended:
                self.running[name] = self.waiting.pop(name), known[name]
        if self.waiting:
            python = sys.executable
            commands = {name: [python, self.script, *task.argv] for name, task in self.waiting.items()}
            for name, job in self.queue.submit(commands).items():
                self.running[name] = self.waiting.pop(name), job

    def _look(self) -> None:
        """Note the tasks whose jobs have ended. While Slurm does not answer, no task counts as ended."""
        jobs = self.queue.look()
        if jobs is None:
            return
        for name, (task, job) in list(self.running.items()):
            current = jobs.get(name)
            if current and (not current.has_ended or current.number != job.number):
                continue
            del self.running[name]
            self.ended.append(describe_end(task, job, current))


def describe_end(task: Task, job: SlurmJob, current: SlurmJob | None) -> TaskEnd:
    """How a task ended: its `job`, and the same job as Slurm knows it now; None: no longer.

    Slurm's exit code counts where the process itself has ended; else the folder says how far it came.
    """
    if current is None:
        return TaskEnd(task.name, recorded_exit_code(task.folder))
    if current.state == "COMPLETED":
        return TaskEnd(task.name, current.code)
    by_itself = current.state == "FAILED" and current.code
    code = current.code if by_itself else recorded_exit_code(task.folder)
    return TaskEnd(task.name, code, f"job {job.number}: {current.state}")


def default_slots() -> int:
    return DEFAULT_SLOTS


def cores_per_task(options: SearchKeys, num_slots: int) -> int:
    """As many as are asked of Slurm, however many tasks run."""
    cores = options.slurm.get("cpus_per_task", 1)
    return max(1, int(cores)) if isinstance(cores, int | float) else 1
