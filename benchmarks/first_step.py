"""How long a user waits: until the first optimizer step, for --help, and at a folder that is busy.

    python benchmarks/first_step.py --data_dir data/digits --repeats 5

Each is a process of its own, alternating with `import torch, torchvision`; medians are printed.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNTIL_STEP = """
import os, runpy, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
register_optimizer_step_post_hook(lambda *_: os._exit(0))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def seconds(*command: object, code: int = 0) -> float:
    """Wall time of a process that must exit with `code`."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"{command}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--experiment", type=Path, default=ROOT / "experiments/quickstart")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as work:
        for number in range(args.repeats):
            folder = Path(work) / f"run_{number}"
            shutil.copytree(args.experiment, folder, ignore=shutil.ignore_patterns("[!p]*"))
            train = [ROOT / "train.py", "--data_dir", args.data_dir.resolve(), "--model_dir", folder]
            for what, command in (
                ("import torch, torchvision", ["-c", "import torch, torchvision"]),
                ("start to first optimizer step", ["-c", UNTIL_STEP, ROOT, *train]),
                ("--help", [ROOT / "train.py", "--help"]),
            ):
                times.setdefault(what, []).append(seconds(*command))
        busy = Path(work) / "busy"
        shutil.copytree(args.experiment, busy, ignore=shutil.ignore_patterns("[!p]*"))
        train = [ROOT / "train.py", "--data_dir", args.data_dir.resolve(), "--model_dir", busy]
        first = subprocess.Popen([sys.executable, *map(str, train), "--num_epochs=1000"], stdout=subprocess.DEVNULL)
        while not (busy / "history.json").exists() and first.poll() is None:
            time.sleep(0.2)
        os.kill(first.pid, 19)  # SIGSTOP: it holds the folder and leaves the cores alone
        times["exit 4 at a busy folder"] = [seconds(*train, code=4) for _ in range(args.repeats)]
        first.kill()
    print(f"n = {args.repeats}, {os.cpu_count()} cores")
    for what, values in times.items():
        print(f"{what:32} median {statistics.median(values):5.2f} s ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
