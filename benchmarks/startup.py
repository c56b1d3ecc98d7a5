"""How long a user waits: for --help, an answer to a mistake, a table, the first optimizer step.

    python benchmarks/startup.py --data_dir data/digits --rounds 5

Each is a process of its own, alternating with `import torch` and `import torch, torchvision`, which bound what a
command can do that needs them. The first step is seen by an observer in the experiment folder, which ends the process.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness import BENCHMARKS, ROOT, Report, against, alternate, arguments, python, ratio, spread

TORCH, BOTH = "import torch", "import torch, torchvision"
FIRST_STEP = "start of train.py to the first optimizer step"
ALLOWANCE = 0.3  # seconds on top of `import torch`, for everything else before the first step
FIRST_STEP_BAR = 1.15


def make_folder(folder: Path, experiment: Path, watched: bool = False) -> Path:
    """A new experiment folder with the params.json of `experiment`; `watched`: it ends at its first step."""
    params = json.loads((experiment / "params.json").read_text())
    params.pop("$schema", None)
    folder.mkdir(parents=True)
    if watched:
        params["observers"] = ["tensorboard", "live_plot", "watch.py:Stop"]
        (folder / "watch.py").write_bytes((BENCHMARKS / "watch.py").read_bytes())
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def train_command(work: Path, args: argparse.Namespace) -> list[object]:
    """train.py up to the experiment folder, which comes last. The first to use it builds the decoded cache."""
    return [ROOT / "train.py", "--data_dir", args.data_dir.resolve(), "--cache_dir", work / "cache", "--model_dir"]


def programs(work: Path, args: argparse.Namespace) -> dict[str, Callable[[int], float]]:
    """What is timed, by name: round -> seconds."""
    train = train_command(work, args)

    def first_step(number: int) -> float:
        folder = make_folder(work / f"first_{number}", args.experiment, watched=True)
        return python(*train, folder)

    def mistyped(number: int) -> float:
        folder = make_folder(work / f"mistyped_{number}", args.experiment)
        return python(*train, folder, "--learning_rat=0.1", code=2)

    return {
        TORCH: lambda _: python("-c", TORCH),
        BOTH: lambda _: python("-c", BOTH),
        FIRST_STEP: first_step,
        "train.py --help": lambda _: python(ROOT / "train.py", "--help"),
        "exit 2 for a mistyped key": mistyped,
        "exit 4 at a folder that another process trains": lambda _: python(*train, work / "busy", code=4),
        "exit 0 at a folder that is done": lambda _: python(*train, work / "done/experiment"),
        "synthesize_results.py, a table": lambda _: python(
            ROOT / "synthesize_results.py", "--parent_dir", work / "done"
        ),
    }


def hold(command: list[object], folder: Path) -> subprocess.Popen:
    """A process that trains `folder` and is stopped in the middle: it holds the folder and leaves the cores alone."""
    command = [sys.executable, *map(str, command), "--num_epochs=1000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "history.json").exists():
        if process.poll() is not None:
            sys.exit(f"{command} ended with exit code {process.returncode}")
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGSTOP)
    return process


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--experiment", type=Path, default=ROOT / "experiments/quickstart")
    args = parser.parse_args()
    report = Report(args)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        train = train_command(work, args)
        python(*train, make_folder(work / "done/experiment", args.experiment), "--num_epochs=1")
        holder = hold([*train, make_folder(work / "busy", args.experiment)], work / "busy")
        try:
            times = alternate(programs(work, args), args.rounds)
        finally:
            holder.kill()
            holder.wait()
    rows = [[what, spread(values), f"{ratio(values, times[TORCH]):.2f}"] for what, values in times.items()]
    report.show("How long a user waits", ["what", "seconds, median (min to max)", f"of `{TORCH}`"], rows)
    wanted = [seconds + ALLOWANCE for seconds in times[TORCH]]
    told = against(ratio(times[FIRST_STEP], wanted), FIRST_STEP_BAR, at_most=True)
    print(f"first step against `{TORCH}` and {ALLOWANCE} s: {told}")
    report.write(seconds=times)


if __name__ == "__main__":
    main()
