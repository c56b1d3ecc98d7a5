"""How long a table of thousands of result folders takes, some of them malformed: seconds, and whether each is named.

    python benchmarks/tables.py --folders 10000 100000 --json tables.json

Folders with the files that train.py leaves, of about the same size, are made in a temporary folder: configurations
with five seeds each. One in twenty is damaged, in ten ways that take turns, and a link in the tree leads back to
its top. Timed is the whole process `synthesize_results.py --parent_dir`; the file system's cache is warm.
"""

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import ROOT, Report, against, arguments, run, spread

sys.path.insert(0, str(ROOT))
from params import from_resolved

SEEDS, SHARE = 5, 20  # of a configuration; one folder in so many is malformed
BAR = 2.0  # seconds for 10,000 folders; ten times that for ten times as many


def epochs(best: float, num: int = 10) -> list[dict[str, Any]]:
    """A history of `num` epochs."""
    rows = []
    for epoch in range(1, num + 1):
        value = best * (1 - 0.5 ** (epoch * 10 / num))
        metrics = {"train_loss": 2 - value, "train_accuracy": value, "val_loss": 2.1 - value, "val_accuracy": value}
        rows.append({"epoch": epoch, "step": 27 * epoch, "learning_rate": 0.1 / epoch} | metrics)
        rows[-1] |= {"seconds": 1.234567 + value, "images_per_second": 719.0123456}
    return rows


def files(number: int, resolved: dict[str, Any]) -> dict[str, Any]:
    """What train.py writes into folder `number`, by name."""
    seed, configuration = number % SEEDS, number // SEEDS
    mine = resolved | {"learning_rate": 0.0001 * (1 + configuration), "ps": configuration % 4 / 4, "seed": seed}
    rows = epochs(0.6 + random.Random(number).random() * 0.3)
    best = {"epoch": 10, "loss": rows[-1]["val_loss"], "accuracy": rows[-1]["val_accuracy"]}
    session = {"command": ["train.py", "--model_dir", f"run_{number}"], "start": "2026-01-01T00:00:00+00:00"}
    session |= {"host": "host", "pid": 12345, "from_step": 0}
    versions = {"torch": "2.15.0", "torchvision": "0.29.2", "albumentations": "2.0.8", "numpy": "2.4.6"}
    meta = {"kit": "0.1.0", "command": session["command"], "start": session["start"], "end": session["start"]}
    meta |= {"versions": versions, "overrides": {}, "data_dir": "/data/digits", "seed": seed, "minimize": ["loss"]}
    meta |= {"platform": "Linux-6.18-x86_64-with-glibc2.36", "python": "3.11.7", "host": "host", "restore_file": None}
    meta |= {"git": {"commit": "0" * 40, "branch": "main", "dirty": False}, "device": {"torch": "2.15", "cpu": "x86"}}
    meta |= {"num_parameters": 78042, "data": {"train": "0" * 64, "valid": "1" * 64}, "sessions": [session]}
    status = {"state": "done", "epoch": 10, "step": 270, "pid": 12345, "host": "host"}
    return {
        "params.json": {key: mine[key] for key in ("arch", "learning_rate", "ps", "seed")},
        "record/resolved.json": mine,
        "record/meta.json": meta,
        "record/status.json": status | {"updated": session["start"], "message": ""},
        "history.json": rows,
        "metrics_val_best_weights.json": best,
        "metrics_val_last_weights.json": best,
    }


def truncated(folder: Path) -> None:
    path = folder / "metrics_val_best_weights.json"
    path.write_bytes(path.read_bytes()[:20])


def as_folder(folder: Path) -> None:
    (folder / "record/meta.json").unlink()
    (folder / "record/meta.json").mkdir()


DAMAGES: list[Callable[[Path], Any]] = [
    truncated,
    as_folder,
    lambda folder: (folder / "history.json").write_text(""),
    lambda folder: (folder / "record/status.json").write_bytes(b"\x80\x00\xff"),
    lambda folder: (folder / "record/resolved.json").unlink(),
    lambda folder: (folder / "metrics_val_best_weights.json").unlink(),
    lambda folder: (folder / "metrics_val_last_weights.json").write_text('{"epoch": 1, "accuracy": "high"}'),
    lambda folder: (folder / "record/resolved.json").write_text("[" * 100_000),
    lambda folder: (folder / "metrics_val_best_weights.json").write_text('{"epoch": 1, "accuracy": NaN}'),
    lambda folder: (folder / "history.json").write_text('[{"epoch": 1, "seconds": "long"}, 3]'),
]


def make_folders(parent: Path, num: int) -> list[str]:
    """`num` folders below `parent`; the names of the malformed ones."""
    resolved = from_resolved({}, Path()).resolved() | {"n_clas": 10, "threads": 1}
    resolved["pinned"] = {"classes": [str(n) for n in range(10)], "mean": [0.3] * 3, "std": [0.4] * 3, "im_sz": 32}
    damaged = []
    for number in range(num):
        folder = parent / f"run_{number}"
        (folder / "record/code").mkdir(parents=True)
        for name in ("weights", "checkpoints"):
            (folder / name).mkdir()
        for name, value in files(number, resolved).items():
            (folder / name).write_text(json.dumps(value, indent=2) + "\n")
        if number % SHARE == 7:
            DAMAGES[len(damaged) % len(DAMAGES)](folder)
            damaged.append(folder.name)
    (parent / "run_0/loop").symlink_to(parent, target_is_directory=True)
    return damaged


def try_one(num: int, rounds: int) -> list[float]:
    """Seconds of each of `rounds` tables over `num` folders. Ends the benchmark when a malformed one is not named."""
    with tempfile.TemporaryDirectory() as name:
        damaged, times = make_folders(Path(name), num), []
        os.sync()
        for _ in range(rounds):
            seconds, printed = run([sys.executable, ROOT / "synthesize_results.py", "--parent_dir", name])
            times.append(seconds)
            print(f"{num:,} folders: {seconds:.2f} s", file=sys.stderr, flush=True)
        said = {line.split("`")[1] for line in printed.splitlines() if line.startswith("- `")}
        if said != set(damaged):
            sys.exit(
                f"{len(damaged)} folders are malformed, {len(said & set(damaged))} of them are named, "
                f"and {len(said - set(damaged))} others"
            )
    return times


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--folders", type=int, nargs="*", default=[10_000])
    args = parser.parse_args()
    report, results = Report(args), {num: try_one(num, args.rounds) for num in args.folders}
    rows = []
    for num, times in results.items():
        bar = BAR * max(1, num / 10_000)
        told = against(sorted(times)[len(times) // 2] / bar, 1, at_most=True).replace("x (", f" of {bar:g} s (")
        rows.append([f"{num:,}", f"{num // SHARE:,}", spread(times), told])
    report.show(
        "A table of result folders", ["folders", "malformed, named", "seconds, median (min to max)", "bar"], rows
    )
    report.write(seconds=results)


if __name__ == "__main__":
    main()
