"""What ASHA finds, and at what cost, against the whole grid: learning rate x weight decay, a small net on CIFAR-10.

    python benchmarks/asha.py --data_dir data/cifar10 --rounds 3
    python benchmarks/asha.py --data_dir data/cifar10 --rounds 3 --work searches   # keep and reuse them

Each round is a seed: the grid of 25 children to the end, then ASHA over the same 25: an epoch for all, the whole run
for the best sixth. A child is a function of its parameters, so ASHA's best is one of the grid's values. Printed are
its distance from the grid's best and its share of the grid's optimizer steps. Nothing is timed.

The learning rate is constant and the evaluated weights are a moving average, so that the first epoch predicts something
of the last. Under one_cycle the first epoch is warm-up.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

from harness import ROOT, Report, arguments

SPACE = {"learning_rate": [0.003, 0.01, 0.03, 0.1, 0.3], "wd": [0.00001, 0.0001, 0.001, 0.01, 0.1]}
SMALL = {
    "arch_args": {"n_filters": 8},
    "num_epochs": 9,
    "limit_train": 10000,
    "observers": [],
    "hyper_search": SPACE,
    "scheduler": "constant",
    "ema": 0.98,
}
POINTS, SHARE = 0.3, 0.35  # the bars: points of accuracy, share of the steps


def search(folder: Path, data_dir: Path, seed: int, pruner: str) -> tuple[float, int, int]:
    """(best validation accuracy, epochs trained over all children, children done)."""
    folder.mkdir(parents=True, exist_ok=True)
    params = SMALL | {"seed": seed, "search": {"pruner": pruner, "eta": 6, "parallel": 2}}
    (folder / "params.json").write_text(json.dumps(params))
    command = [
        sys.executable,
        str(ROOT / "search_hyperparams.py"),
        "--data_dir",
        str(data_dir),
        "--parent_dir",
        str(folder),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ)
    histories = [list(csv.DictReader(path.open())) for path in folder.glob("*/history.csv")]
    assert len(histories) == 25, f"{len(histories)} children"
    best = max(float(row["val_accuracy"]) for rows in histories for row in rows)
    return best, sum(map(len, histories)), sum(len(rows) == SMALL["num_epochs"] for rows in histories)


def main() -> None:
    parser = arguments(__doc__, 3)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="folder for the searches (a temporary one)")
    args = parser.parse_args()
    report = Report(args)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        for seed in range(args.rounds):
            found = {
                pruner: search(work / f"{pruner}_{seed}", args.data_dir, seed, pruner) for pruner in ("none", "asha")
            }
            (grid, all_epochs, _), (best, epochs, done) = found["none"], found["asha"]
            rows.append((seed, grid, best, 100 * (grid - best), epochs / all_epochs, done))
            print(rows[-1], file=sys.stderr, flush=True)
    missed, share = mean(row[3] for row in rows), mean(row[4] for row in rows)
    lines = [
        (seed, f"{grid:.4f}", f"{best:.4f}", f"{points:.2f}", f"{part:.3f}", done)
        for seed, grid, best, points, part, done in rows
    ]
    headers = ["seed", "grid's best", "ASHA's best", "points missed", "share of the steps", "children done"]
    report.show("ASHA against the whole grid", headers, lines)
    print(f"mean: {missed:.2f} points missed (bar {POINTS}), {share:.3f} of the steps (bar {SHARE})")
    report.write(rows=rows)


if __name__ == "__main__":
    main()
