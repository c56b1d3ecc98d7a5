"""Faults on purpose: a file system that fails at its Nth call, flipped bits, trainings killed at random instants.

As a script it is a warm fork server: it imports the kit once and forks a training per attempt.

    python tests/tools/faults.py --kills 500 --signal KILL
"""

import argparse
import contextlib
import errno
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CRASH = "crash"
CALLS = ("open", "write", "fsync", "chmod", "replace", "rename", "unlink", "symlink", "mkdir")
CRASHED = 77  # exit code


# --- the Nth call ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def failing_files(at: int, fault: str | int, for_good: bool = False) -> Iterator[list[str]]:
    """The calls of `os` that change or sync files are counted, from 1; number `at` fails.

    `fault`: CRASH (the process ends there, a write half done) or an errno. `for_good`: each later call too.
    Gives the list of the calls made so far; at=0 only counts.
    """
    made: list[str] = []
    real = {name: getattr(os, name) for name in CALLS}

    def failing(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            if at and (len(made) == at or (for_good and len(made) > at)):
                if fault == CRASH:
                    if name == "write":
                        real["write"](args[0], bytes(args[1])[: len(args[1]) // 2])
                    os._exit(CRASHED)
                raise OSError(fault, os.strerror(int(fault)), None if isinstance(args[0], int) else os.fspath(args[0]))
            return real[name](*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, failing(name))
    try:
        yield made
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def in_a_child(job: Callable[[], None]) -> int:
    """Run `job` in a fork; its exit code: 0, or CRASHED."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            job()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- bits -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def flipped_bit(path: Path, rng: random.Random) -> Iterator[int]:
    """One bit of a file is wrong; gives its number."""
    data = path.read_bytes()
    bit = rng.randrange(len(data) * 8)
    wrong = bytearray(data)
    wrong[bit // 8] ^= 1 << bit % 8
    path.write_bytes(wrong)
    try:
        yield bit
    finally:
        path.write_bytes(data)


# --- trainings that are killed --------------------------------------------------------------------------

COMMON = {
    "arch": "simple_cnn",
    "arch_args": {"n_filters": 4},
    "batch_size": 8,
    "num_epochs": 5,
    "observers": [],
    "threads": 1,
    "precision": "fp32",
    "checkpoint_minutes": 0.0003,
    "save_summary_steps": 1,
    "ps": 0.3,
}
VARIANTS: list[dict[str, Any]] = [
    {"ema": 0.9, "mixup": 0.4, "scheduler": "one_cycle", "early_stopping": {"patience": 3}},
    {
        "num_workers": 1,
        "cutmix": 1.0,
        "scheduler": "plateau",
        "augment": ["HorizontalFlip", "RandomBrightnessContrast"],
    },
    {"num_workers": 2, "accumulate": 2, "augment": "strong", "scheduler": "cosine", "keep_last": 3},
    {
        "num_workers": 4,
        "optimizer": "adamw",
        "learning_rate": 0.003,
        "grad_clip": 1.0,
        "sampler": "balanced",
        "metrics": ["accuracy", "f1"],
        "best_metric": "f1",
        "ema": 0.9,
    },
    {
        "precision": "auto",
        "threads": 2,
        "optimizer": "muon",
        "learning_rate": 0.02,
        "tta": "flip",
        "alternate_flip": 1,
        "progressive": {"initial_scale": 0.5, "delay_fraction": 0.3, "finetune_fraction": 0.3},
        "cache": "device",
    },
    {"precision": "auto", "threads": 2, "cache": "off", "num_workers": None, "ema": 0.9},
]


def digest(folder: Path) -> str:
    """Over weights, history and metrics; clocks aside."""
    found = hashlib.sha256()
    rows = json.loads((folder / "history.json").read_text())
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]
    found.update(json.dumps(rows).encode())
    for name in (
        "weights/best.safetensors",
        "weights/last.safetensors",
        "metrics_val_best_weights.json",
        "metrics_val_last_weights.json",
    ):
        found.update((folder / name).read_bytes())
    return found.hexdigest()


def start(data: Path, folder: Path) -> int:
    """Fork a training into a process group of its own."""
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    output = os.open(folder.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    code = 70
    try:
        import train
        from utils import run_script

        sys.argv = ["train.py", "--data_dir", str(data), "--model_dir", str(folder)]
        run_script(train.main)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def wait(pid: int, until: float | None = None) -> int | None:
    """Exit code (-N: signal N); None when it still runs at `until`."""
    while until is None or time.monotonic() < until:
        done, status = os.waitpid(pid, 0 if until is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def orphans(pid: int, seconds: float = 6.0) -> bool:
    """Whether a process of the group lives on."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    return True


class Experiment:
    """One variant: its parameters, how long it takes, and what an uninterrupted run gives."""

    def __init__(self, work: Path, data: Path, number: int):
        self.work, self.data, self.number, self.count = work, data, number, 0
        begun = time.monotonic()
        folder = self.new_folder()
        code = wait(start(data, folder))
        assert code == 0, (code, folder.with_suffix(".out").read_text())
        self.seconds, self.digest = time.monotonic() - begun, digest(folder)

    def new_folder(self) -> Path:
        folder = self.work / f"variant_{self.number}_{self.count}"
        self.count += 1
        folder.mkdir()
        (folder / "params.json").write_text(json.dumps(COMMON | VARIANTS[self.number]))
        return folder


def interrupt_once(one: Experiment, folder: Path, number: int, rng: random.Random, found: dict[str, Any]) -> bool:
    """Start, interrupt at a random instant. True when it had finished by itself before."""
    pid = start(one.data, folder)
    code = wait(pid, time.monotonic() + rng.uniform(0, 1.1 * one.seconds))
    if code is None:
        to_group = number != signal.SIGKILL and rng.random() < 0.5
        sent = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if to_group else os.kill)(pid, number)
        code = wait(pid)
        found["sent"] += code != 0  # one that came when all was done interrupted nothing: it is sent again
        found["slowest_exit"] = max(found["slowest_exit"], round(time.monotonic() - sent, 2))
        if number != signal.SIGKILL:
            found["orphans"] += orphans(pid)
    expected = {0, -number} if number == signal.SIGKILL else {0, 128 + number, -number}
    found["codes"][str(code)] = found["codes"].get(str(code), 0) + 1
    if code not in expected:
        found["failures"].append(f"{folder.name}: exit {code}: {folder.with_suffix('.out').read_text()[-500:]}")
        return True
    return code == 0


def run(kills: int, signals: list[int], seed: int) -> dict[str, Any]:
    """Interrupt, by each signal in turn, until `kills` were sent; every run is then finished and compared."""
    rng = random.Random(seed)
    found: dict[str, Any] = {
        "signals": [signal.Signals(n).name for n in signals],
        "sent": 0,
        "finished": 0,
        "identical": 0,
        "orphans": 0,
        "slowest_exit": 0.0,
        "codes": {},
        "failures": [],
    }
    with tempfile.TemporaryDirectory() as name:
        sys.path[:0] = [str(ROOT), str(ROOT / "tests/tools")]
        # Threads do not live through a fork: this process must have none, whatever the environment says.
        os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        import albumentations  # noqa: F401
        import torch._dynamo  # noqa: F401
        from kit import make_dataset

        import engine.session  # noqa: F401
        import model.data_loader
        import model.net  # noqa: F401
        import report.figures  # noqa: F401
        import train  # noqa: F401 (warm: what a training imports is imported before the forks)

        data = make_dataset(Path(name) / "data", per_class=20, side=12)
        experiments = [Experiment(Path(name), data, n) for n in range(len(VARIANTS))]
        while found["sent"] < kills and not found["failures"]:
            one = experiments[found["finished"] % len(experiments)]
            folder = one.new_folder()
            while not interrupt_once(one, folder, signals[found["sent"] % len(signals)], rng, found):
                if found["sent"] >= kills:
                    code = wait(start(data, folder))
                    if code:
                        found["failures"].append(f"{folder.name}: exit {code} at the end")
                    break
            if found["failures"]:
                break
            found["finished"] += 1
            found["identical"] += digest(folder) == one.digest
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signal", default="KILL", help="one or more of KILL,TERM,INT,HUP,USR1")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begun = time.monotonic()
    found = run(args.kills, [getattr(signal, f"SIG{name}") for name in args.signal.split(",")], args.seed)
    print(json.dumps(found | {"seconds": round(time.monotonic() - begun)}, indent=2))
    ok = found["identical"] == found["finished"] > 0 and not found["failures"] and not found["orphans"]
    sys.exit(0 if ok else 1)


FAULTS = {CRASH: CRASH, "EIO": errno.EIO, "ENOSPC": errno.ENOSPC}

if __name__ == "__main__":
    main()
