"""Slurm jobs: submitting them, looking them up, and `train.py --engine slurm`, which makes one run a job.

submitit writes and submits the job script. Its process becomes train.py itself (execv), so that each of Slurm's
signals reaches train.py once, whatever process tracking the site uses. On SIGUSR1 (the time limit is near, or the
site preempts with send_user_signal) and SIGTERM train.py saves; the script then puts the job back into the queue,
and it goes on mid-epoch. `scancel` saves and ends it.

A batch of jobs has a unique name, which is recorded before the jobs are submitted: a process that is
killed in between and started again finds its jobs in the queue instead of submitting them twice.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.plan import Plan
from folder.aside import move_aside
from folder.folder import Folder
from folder.provenance import source_files
from include import JOBS, ROOT
from utils import UserError, command, nearest, read_json, write_json

REQUEUES = 100  # how many times one job is requeued, unless search.slurm.requeues says otherwise
SIGNAL_DELAY = 90  # seconds before the time limit at which Slurm sends SIGUSR1, unless signal_delay_s says otherwise
ANSWER = 60  # seconds that Slurm has to answer

# The environment variables that reach a process on another machine.
FORWARDED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("XDG_CACHE_HOME", "XDG_STATE_HOME", "TORCH_HOME", "HF_HOME", "SSL_CERT_FILE"),
    *("http_proxy", "https_proxy", "no_proxy"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"),
)
ENDED_STATES = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}
COLUMNS = {"ArrayJobID": 20, "ArrayTaskID": 20, "Name": 40, "State": 20, "exit_code": 12, "Reason": 60}
# Options of submitit that users may not set: the kit sets them, or they would let several processes train one folder.
RESERVED = {
    *("name", "job_name", "array_parallelism", "teardown", "stderr_to_stdout", "use_srun", "map_count", "num_gpus"),
    *("nodes", "ntasks_per_node", "tasks_per_node"),
}
REQUEUE_SCRIPT = """code=$?
if [ $code = 138 ] || [ $code = 143 ]; then
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {limit} ] && [ "$(squeue -h -j $SLURM_JOB_ID -o %T)" = RUNNING ]; then
        scontrol requeue $SLURM_JOB_ID && exit 0
    fi
fi
exit $code"""


@dataclass(frozen=True)
class SlurmJob:
    """A line of the queue."""

    number: str  # 12, or 12_3 in an array
    state: str  # RUNNING, PENDING, ...
    code: int = 0  # as Popen.returncode, once it has ended
    reason: str = ""

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED_STATES

    @property
    def order(self) -> tuple[bool, int]:
        """Sorts ended jobs before live ones, earlier ones before later ones."""
        return not self.has_ended, int(self.number.split("_")[0])


def whole_number(options: Mapping[str, object], name: str, default: int) -> int:
    """An option of search.slurm that must be a whole number. UserError for anything else."""
    value = options.get(name, default)
    if type(value) is not int or value < 0:
        raise UserError(f"search.slurm.{name}: {value!r} given; possible: a whole number, 0 or more")
    return value


def check_names(names: Sequence[str], submitit_names: set[str]) -> None:
    """UserError for an option of search.slurm that neither submitit nor the kit knows."""
    possible = {*submitit_names, "requeues"} - RESERVED
    for name in names:
        if name not in possible:
            raise UserError(f"search.slurm: unknown key {name!r}; {nearest(name, possible)}")


def submitit_parameters(options: Mapping[str, object], renamed: Mapping[str, str], parallel: int) -> dict[str, object]:
    """search.slurm -> the arguments of submitit's update_parameters. `renamed`: general name -> its name for Slurm."""
    limit = whole_number(options, "requeues", REQUEUES)
    delay = whole_number(options, "signal_delay_s", SIGNAL_DELAY)
    # options of sbatch
    export = [*(name for name in FORWARDED if name in os.environ), "SUBMITIT_EXECUTOR=slurm"]
    of_sbatch: dict[str, object] = {"export": ",".join(export), "requeue": True, "signal": f"USR1@{delay}"}
    more = options.get("additional_parameters", {})
    if not isinstance(more, dict):
        raise UserError(f"search.slurm.additional_parameters: {more!r} given; possible: an object of sbatch's options")
    of_sbatch |= more
    # options of submitit; without a time limit and an accounting key the site's own count
    values: dict[str, object] = {"time": None, "wckey": None}
    read = {"requeues", "signal_delay_s", "additional_parameters"}
    values |= {renamed.get(name, name): value for name, value in options.items() if name not in read}
    memory = values.get("mem")
    if isinstance(memory, int | float):
        values["mem"] = f"{round(memory * 1024)}MB"
    # what the kit needs
    values |= {"array_parallelism": parallel, "stderr_to_stdout": True}
    values |= {"teardown": [REQUEUE_SCRIPT.format(limit=limit)], "additional_parameters": of_sbatch}
    return values


class SlurmQueue:
    """The jobs whose scripts and logs are in the folder `home`. UserError where Slurm or submitit is missing."""

    def __init__(self, home: Path, options: Mapping[str, object], parallel: int = 1):
        self.home = home.absolute()
        self.prefix = "folder-" + hashlib.blake2b(str(self.home.resolve()).encode(), digest_size=5).hexdigest()
        try:
            import submitit  # pyright: ignore[reportMissingImports] # an extra
        except ImportError:
            raise UserError("--engine slurm needs submitit: pip install -r requirements-extras.txt") from None
        renamed = submitit.SlurmExecutor._equivalence_dict()
        check_names(list(options), {*submitit.SlurmExecutor._valid_parameters(), *renamed})
        self.parameters = submitit_parameters(options, renamed, parallel)
        if missing := [name for name in ("sbatch", "squeue", "scancel") if not shutil.which(name)]:
            raise UserError(f"--engine slurm: no {missing[0]} here; start it where jobs are submitted to Slurm")
        self.executor = submitit.SlurmExecutor(self.home)

    def submit(self, commands: Mapping[str, Sequence[str]]) -> dict[str, SlurmJob]:
        """Submit one job, or one array for several: {name: command line}. UserError when Slurm refuses."""
        # The names are written down first: whatever happens now, the jobs can be found again.
        batch = uuid.uuid4().hex[:8]
        self.home.mkdir(parents=True, exist_ok=True)
        write_json(self.home / f"{batch}.json", list(commands))
        try:
            self.executor.update_parameters(**self.parameters, job_name=f"{self.prefix}-{batch}")
            jobs = self.executor.map_array(os.execv, [words[0] for words in commands.values()], commands.values())
        except Exception as error:  # submitit raises several kinds, of no common class
            (self.home / f"{batch}.json").unlink()
            lines = [line.strip() for line in str(error).splitlines() if "error:" in line]
            raise UserError(f"Slurm refuses the job: {'; '.join(lines) or error}") from None
        for name, job in zip(commands, jobs, strict=True):
            self._link_log(name, job.paths.stdout)
        return {name: SlurmJob(job.job_id, "PENDING") for name, job in zip(commands, jobs, strict=True)}

    def _link_log(self, name: str, log: Path) -> None:
        """Link the log of a job as NAME.log beside `home`."""
        link = self.home.parent / f"{name}.log"
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(log, link.parent))

    def look(self) -> dict[str, SlurmJob] | None:
        """name -> its latest job that Slurm still knows; None when Slurm does not answer."""
        columns = ",".join(f"{name}:{width}" for name, width in COLUMNS.items())
        words = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", f"--Format={columns}"]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
        jobs: dict[str, SlurmJob] = {}
        for line in done.stdout.splitlines():
            entry = self._read_line(line)
            if entry and (entry[0] not in jobs or entry[1].order > jobs[entry[0]].order):
                jobs[entry[0]] = entry[1]
        return jobs

    def _read_line(self, line: str) -> tuple[str, SlurmJob] | None:
        """(name, job) of a line of squeue; None for any other job."""
        # columns of fixed width
        fields = {}
        start = 0
        for column, width in COLUMNS.items():
            fields[column] = line[start : start + width].strip()
            start += width
        # the batch is part of the job's name
        prefix, _, batch = fields["Name"].rpartition("-")
        if prefix != self.prefix or not (self.home / f"{batch}.json").exists():
            return None
        # the place in the array says which name of the batch
        index = fields["ArrayTaskID"]
        number = f"{fields['ArrayJobID']}_{index}" if index.isdigit() else fields["ArrayJobID"]
        code = os.waitstatus_to_exitcode(int(fields["exit_code"])) if fields["exit_code"].isdigit() else 0
        names = read_json(self.home / f"{batch}.json")
        name = names[int(index) if index.isdigit() else 0]
        return name, SlurmJob(number, fields["State"], code, fields["Reason"])

    def cancel(self, jobs: Sequence[SlurmJob]) -> None:
        """Running jobs get SIGTERM, save and end; waiting ones are removed."""
        if jobs:
            subprocess.run(["scancel", *(job.number for job in jobs)], capture_output=True, timeout=ANSWER)


# --- one run as a job --------------------------------------------------------------------------------


def submit(folder: Folder, argv: Sequence[str], decide: Callable[[], Plan]) -> str:
    """Submit `train.py argv` as a job that runs a copy of the code as it is now; returns the message for the user.

    `decide()`: what the start means for the folder; called once the folder is locked. A folder that has a live job
    gets no second one.
    """
    if other := [flag for flag in ("--verify", "--prepare", "--find_lr") if flag in argv]:
        raise UserError(f"--engine slurm trains: leave out {other[0]}")
    # a live job of this folder?
    name = folder.path.resolve().name
    home = folder.path / JOBS / "slurm"
    log = home.parent / f"{name}.log"
    known = SlurmQueue(home, {}).look()
    if known is None:
        raise UserError("squeue does not answer: is Slurm up? Nothing was submitted")
    job = known.get(name)
    if job and not job.has_ended:
        reason = f", {job.reason}" if job.state == "PENDING" else ""
        return f"{folder.path} is queued already: job {job.number} ({job.state}{reason}); log {log}"
    with folder.locked():
        # is there anything to train, and may it be written?
        plan = decide()
        if plan.verb == "done":
            return f"{folder.path} is done; nothing was submitted"
        folder.check_writable()
        queue = SlurmQueue(home, plan.params.search.slurm)  # its options are checked before anything is moved
        if plan.restart:
            move_aside(folder.path)
        # the job runs a copy of the code
        words = [sys.executable, str(copy_code(home) / "train.py"), *without(argv, "--engine", "--restart")]
        job = queue.submit({name: words})[name]
    ways = f"look: {command('squeue', '-j', job.number)}; save and end: {command('scancel', job.number)}"
    return f"job {job.number} is queued; log {log}\n{ways}; the same command says how it stands"


def copy_code(home: Path) -> Path:
    """A copy of the kit's source as it is now, safe from later edits: home/code-DIGEST."""
    sources = {name: (ROOT / name).read_bytes() for name in source_files(ROOT)}
    digest = hashlib.blake2b(repr(sorted(sources.items())).encode(), digest_size=5).hexdigest()
    target = home.absolute() / f"code-{digest}"
    for name, data in sources.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    return target


def without(argv: Sequence[str], valued: str, plain: str) -> list[str]:
    """`argv` without `valued X`, `valued=X` and `plain`."""
    kept = []
    words = iter(argv)
    for word in words:
        if word == valued:
            next(words, None)  # its value
        elif word != plain and not word.startswith(f"{valued}="):
            kept.append(word)
    return kept
