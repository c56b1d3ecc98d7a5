"""train.py in one process with all threads, and in several processes with one thread each, by torchrun.

    python benchmarks/scale.py --data_dir data/cifar10 --rounds 3

The same experiment each time, its decoded cache made before. Images per second are those of history.json, the median
of the epochs after the first; beside them the result of the training: the order of the images is the same,
the last bits differ.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import ROOT, Report, against, alternate, arguments, link_images, python, ratio, spread

PARAMS = {"batch_size": 128, "learning_rate": 0.05, "observers": []}
BAR = 1.2  # processes of one thread each against one process of as many threads


def train(launch: list[object], threads: int, folder: Path, data: list[object], num_epochs: int) -> dict[str, Any]:
    """images/s and the last row of the history."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(PARAMS | {"num_epochs": num_epochs}))
    seconds = python(*launch, ROOT / "train.py", *data, "--model_dir", folder, f"--threads={threads}")
    history = json.loads((folder / "history.json").read_text())
    speeds = [row["images_per_second"] for row in history[1:] or history]
    last = {key: value for key, value in history[-1].items() if key.startswith(("train_", "val_"))}
    return {"images_per_second": statistics.median(speeds), "seconds": seconds, **last}


def programs(work: Path, data: list[object], args: argparse.Namespace) -> dict[str, Callable[[int], dict[str, Any]]]:
    num = args.processes

    def program(name: str, launch: list[object], threads: int) -> Callable[[int], dict[str, Any]]:
        return lambda number: train(launch, threads, work / f"{name}_{number}", data, args.num_epochs)

    def torchrun(processes: int) -> list[object]:
        return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]

    return {
        f"1 process, {num} threads": program("plain", [], num),
        f"torchrun, 1 process, {num} threads": program("torchrun_1", torchrun(1), num),
        f"torchrun, {num} processes, 1 thread each": program(f"torchrun_{num}", torchrun(num), 1),
    }


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--data_dir", type=Path, required=True, help="CIFAR-10 as build_dataset.py makes it")
    parser.add_argument("--arch", default="simple_cnn")
    parser.add_argument("--processes", type=int, default=2, help="and threads of the one process")
    parser.add_argument("--train", type=int, default=3840, help="so many training images")
    parser.add_argument("--valid", type=int, default=640, help="and validation images, of the same split")
    parser.add_argument("--num_epochs", type=int, default=3)
    args = parser.parse_args()
    PARAMS["arch"] = args.arch
    report = Report(args)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        link_images(args.data_dir / "train", work / "data", {"train": args.train, "valid": args.valid})
        data = ["--data_dir", work / "data", "--cache_dir", work / "cache"]
        train([], args.processes, work / "first", data, 1)
        results = alternate(programs(work, data, args), args.rounds)
    names = list(results)
    speeds = {name: [one["images_per_second"] for one in ones] for name, ones in results.items()}
    made = []
    for name, ones in results.items():
        bar = BAR if name == names[-1] and args.processes > 1 else None
        cells = [name, spread(speeds[name], 0), against(ratio(speeds[name], speeds[names[0]]), bar)]
        metrics = [{key: one[key] for key in ("train_loss", "val_loss", "val_accuracy")} for one in ones]
        told = ", ".join(f"{key} {value:.4f}" for key, value in metrics[0].items())
        made.append([*cells, told if all(one == metrics[0] for one in metrics) else f"{told} (not the same each time)"])
    headers = ["launched as", "images/s, median (min to max)", f"of {names[0]}", f"after {args.num_epochs} epochs"]
    report.show(f"{args.arch}, {args.train} training images", headers, made)
    report.write(runs=results)


if __name__ == "__main__":
    sys.exit(main())
