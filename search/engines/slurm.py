"""Slurm: the tasks of a search as job arrays, one run as a job. Through submitit, which writes and submits the script.

A job becomes train.py itself (execv), so that Slurm's signals reach it once, whatever the site's process tracking.
SIGUSR1 (the time limit comes, or a preemption by the site's send_user_signal) and SIGTERM make it save; its script
then puts the job back into the queue, where it goes on mid-epoch. `scancel` saves and ends it.

A batch has a name of its own, and is written down before it is submitted: who is killed in between, and starts
again, finds its jobs in the queue instead of submitting them twice.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from folder.folder import Folder
from search.engines.base import KEPT, LOGS, Ended, Task, end_of
from utils import UserError, command, nearest, read_json, write_json

LOOK = 5.0  # seconds between two looks at the queue
REQUEUES = 100  # times that one job goes back into the queue
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
        "REVOKED", "TIMEOUT"}  # fmt: skip
COLUMNS = {"ArrayJobID": 20, "ArrayTaskID": 20, "Name": 40, "State": 20, "exit_code": 12, "Reason": 60}
OURS = {"name", "job_name", "array_parallelism", "teardown", "stderr_to_stdout", "use_srun", "map_count", "num_gpus",
        "nodes", "ntasks_per_node", "tasks_per_node"}  # fmt: skip
AGAIN = """code=$?
if [ $code = 138 ] || [ $code = 143 ]; then
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {limit} ] && [ "$(squeue -h -j $SLURM_JOB_ID -o %T)" = RUNNING ]; then
        scontrol requeue $SLURM_JOB_ID && exit 0
    fi
fi
exit $code"""


@dataclass(frozen=True)
class Job:
    """A line of the queue."""

    number: str  # 12, or 12_3 in an array
    state: str  # RUNNING, PENDING, ...
    code: int = 0  # as Popen.returncode, once it is over
    reason: str = ""

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    @property
    def order(self) -> tuple[bool, int]:
        """What lives comes after what is over, later ones after earlier ones."""
        return not self.is_over, int(self.number.split("_")[0])


def parameters(executor: Any, given: dict[str, Any], parallel: int) -> dict[str, Any]:
    """search.slurm -> the arguments of submitit's update_parameters. UserError for a name that it does not know."""
    renamed = executor._equivalence_dict()
    possible = {*executor._valid_parameters(), *renamed, "requeues"} - OURS
    for name in given:
        if name not in possible:
            raise UserError(f"search.slurm: unknown key {name!r}; {nearest(name, possible)}")
    limit, delay = given.pop("requeues", REQUEUES), given.pop("signal_delay_s", 90)
    if type(limit) is not int or limit < 0 or type(delay) is not int or delay < 0:
        raise UserError("search.slurm: requeues and signal_delay_s are whole numbers, 0 or more")
    export = [*(name for name in KEPT if name in os.environ), "SUBMITIT_EXECUTOR=slurm"]
    more = {"export": ",".join(export), "requeue": True, "signal": f"USR1@{delay}"}
    extra = given.pop("additional_parameters", {})
    if not isinstance(extra, dict):
        raise UserError(f"search.slurm.additional_parameters: {extra!r} given; possible: an object of sbatch's options")
    more |= extra
    values: dict[str, Any] = {"time": None, "wckey": None}  # as the site has it
    values |= {renamed.get(name, name): value for name, value in given.items()}
    if isinstance(memory := values.get("mem"), int | float):
        values["mem"] = f"{round(memory * 1024)}MB"
    ours = {"array_parallelism": parallel, "stderr_to_stdout": True, "teardown": [AGAIN.format(limit=limit)]}
    return values | ours | {"additional_parameters": more}


class Queue:
    """The jobs whose scripts and logs are in the folder `home`. UserError where Slurm or submitit is missing."""

    def __init__(self, home: Path, options: Mapping[str, Any], parallel: int = 1):
        self.home = home.absolute()
        self.prefix = "folder-" + hashlib.blake2b(str(self.home.resolve()).encode(), digest_size=5).hexdigest()
        try:
            import submitit
        except ImportError:
            raise UserError("--engine slurm needs submitit: pip install -r requirements-extras.txt") from None
        self.parameters = parameters(submitit.SlurmExecutor, dict(options), parallel)
        if missing := [name for name in ("sbatch", "squeue", "scancel") if not shutil.which(name)]:
            raise UserError(f"--engine slurm: no {missing[0]} here; start it where jobs are submitted to Slurm")
        self.executor = submitit.SlurmExecutor(self.home)

    def submit(self, commands: Mapping[str, Sequence[str]]) -> dict[str, Job]:
        """One job, or one array for several: name -> what its process becomes. UserError when Slurm refuses."""
        batch = uuid.uuid4().hex[:8]
        self.home.mkdir(parents=True, exist_ok=True)
        write_json(self.home / f"{batch}.json", list(commands))
        try:
            self.executor.update_parameters(**self.parameters, job_name=f"{self.prefix}-{batch}")
            jobs = self.executor.map_array(os.execv, [words[0] for words in commands.values()], commands.values())
        except Exception as error:  # submitit has several kinds, of no common class
            (self.home / f"{batch}.json").unlink()
            lines = [line.strip() for line in str(error).splitlines() if "error:" in line]
            raise UserError(f"Slurm refuses the job: {'; '.join(lines) or error}") from None
        for name, job in zip(commands, jobs, strict=True):
            self._link(name, job.paths.stdout)
        return {name: Job(job.job_id, "PENDING") for name, job in zip(commands, jobs, strict=True)}

    def _link(self, name: str, log: Path) -> None:
        """The log of a task by its own name, beside the folder of all jobs."""
        link = self.home.parent / f"{name}.log"
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(log, link.parent))

    def look(self) -> dict[str, Job] | None:
        """name -> its latest job that Slurm still knows; None when Slurm does not answer."""
        form = ",".join(f"{name}:{width}" for name, width in COLUMNS.items())
        words = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", f"--Format={form}"]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
        jobs: dict[str, Job] = {}
        for line in done.stdout.splitlines():
            name, job = self._read(line)
            if job and (name not in jobs or job.order > jobs[name].order):
                jobs[name] = job
        return jobs

    def _read(self, line: str) -> tuple[str, Job | None]:
        fields, start = {}, 0
        for column, width in COLUMNS.items():
            fields[column] = line[start : start + width].strip()
            start += width
        prefix, _, batch = fields["Name"].rpartition("-")
        if prefix != self.prefix or not (self.home / f"{batch}.json").exists():
            return "", None
        index = fields["ArrayTaskID"]
        number = f"{fields['ArrayJobID']}_{index}" if index.isdigit() else fields["ArrayJobID"]
        code = os.waitstatus_to_exitcode(int(fields["exit_code"])) if fields["exit_code"].isdigit() else 0
        names = read_json(self.home / f"{batch}.json")
        return names[int(index) if index.isdigit() else 0], Job(number, fields["State"], code, fields["Reason"])

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Jobs that run get SIGTERM, save and end; those that wait are gone."""
        if jobs:
            subprocess.run(["scancel", *(job.number for job in jobs)], capture_output=True, timeout=60)


class SlurmEngine:
    """See search/engines/base.py. What start() is given until the next wait() becomes one array.

    A search that ends without close() leaves its jobs to Slurm; the next one on the same folder takes them over.
    """

    def __init__(self, code: Path, parent: Path, parallel: int, options: Mapping[str, Any]):
        self.num_slots = parallel
        self.script = str((code / "train.py").absolute())
        self.queue = Queue(parent / LOGS / "slurm", options, parallel)
        self.waiting: dict[str, Task] = {}  # not submitted yet
        self.running: dict[str, tuple[Task, Job]] = {}
        self.ended: list[Ended] = []
        self.looked = -LOOK

    def start(self, tasks: Sequence[Task]) -> None:
        self.waiting |= {task.name: task for task in tasks}

    def wait(self, seconds: float) -> list[Ended]:
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
        ended, self.ended = self.ended, []
        return ended

    def stop(self, name: str) -> None:
        if self.waiting.pop(name, None):
            self.ended.append(Ended(name, 143, "not submitted yet"))
        elif name in self.running:
            self.queue.cancel([self.running[name][1]])

    def close(self) -> None:
        self.waiting.clear()
        self.queue.cancel([job for _, job in self.running.values()])
        end = time.monotonic() + 60
        while self.running and time.monotonic() < end:
            self._look()
            time.sleep(0.5)

    def _submit(self) -> None:
        """What waits becomes one array, but for what is in the queue from an earlier search."""
        if not self.waiting:
            return
        known = self.queue.look()
        if known is None:
            return  # Slurm is asked again at the next wait
        for name in list(self.waiting):
            if name in known and not known[name].is_over:
                self.running[name] = self.waiting.pop(name), known[name]
        if self.waiting:
            jobs = self.queue.submit({n: [sys.executable, self.script, *t.argv] for n, t in self.waiting.items()})
            self.running |= {name: (self.waiting[name], job) for name, job in jobs.items()}
            self.waiting.clear()

    def _look(self) -> None:
        jobs = self.queue.look()
        if jobs is None:
            return
        for name, (task, job) in list(self.running.items()):
            now = jobs.get(name)
            if now and (not now.is_over or now.number != job.number):
                continue
            del self.running[name]
            message = f"job {job.number}: {now.state}" if now and now.state != "COMPLETED" else ""
            is_told = now and (now.state == "COMPLETED" or (now.state == "FAILED" and now.code))
            self.ended.append(Ended(name, now.code if now and is_told else end_of(task.folder), message))


# --- one run ----------------------------------------------------------------------------------------


def submit(folder: Folder, args: Any, overrides: dict[str, Any], argv: Sequence[str]) -> str:
    """Queue `train.py argv`, by a copy of the code as it is now; what to say. Once: a job that lives is named."""
    from engine.plan import decide

    if idle := [flag for flag in ("verify", "prepare", "find_lr") if getattr(args, flag)]:
        raise UserError(f"--engine slurm trains: leave out --{idle[0]}")
    name = folder.path.resolve().name
    home = folder.path / LOGS / "slurm"
    log = home.parent / f"{name}.log"
    queue = Queue(home, {})
    known = queue.look()
    if known is None:
        raise UserError("squeue does not answer: is Slurm up? Nothing was submitted")
    if name in known and not (job := known[name]).is_over:
        waits = f", {job.reason}" if job.state == "PENDING" else ""
        return f"{folder.path} is queued already: job {job.number} ({job.state}{waits}); log {log}"
    with folder.locked():
        plan = decide(folder, args, overrides, list(argv))
        if plan.verb == "done":
            return f"{folder.path} is done; nothing was submitted"
        folder.check_writable()
        queue = Queue(home, plan.params.search.slurm)
        if plan.restart:
            folder.move_aside()
        code = copy_code(home)
        words = [sys.executable, str(code / "train.py"), *without(argv, "--engine", "--restart")]
        job = queue.submit({name: words})[name]
    ways = f"look: {command('squeue', '-j', job.number)}; save and end: {command('scancel', job.number)}"
    return f"job {job.number} is queued; log {log}\n{ways}; the same command says how it stands"


def copy_code(home: Path) -> Path:
    """A copy of the source that runs now, which later edits do not reach: home/code-DIGEST."""
    from folder.provenance import source_files
    from include import ROOT

    sources = {name: (ROOT / name).read_bytes() for name in source_files(ROOT)}
    digest = hashlib.blake2b(repr(sorted(sources.items())).encode(), digest_size=5).hexdigest()
    target = home.absolute() / f"code-{digest}"
    for name, data in sources.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    return target


def without(argv: Sequence[str], valued: str, plain: str) -> list[str]:
    """`argv` without `valued X`, `valued=X` and `plain`."""
    kept, words = [], iter(argv)
    for word in words:
        if word == valued:
            next(words, None)
        elif word != plain and not word.startswith(f"{valued}="):
            kept.append(word)
    return kept
