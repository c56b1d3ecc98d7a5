"""bf16 against fp32: the same experiment with the same seeds, and what both come to.

    python benchmarks/precision_parity.py --data_dir data/cifar10 --rounds 5

Each seed trains once with each precision; they share initial weights, order and augmentation. The difference is paired
by seed, with its 95 % interval (Student's t).
"""

import json
import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import ROOT, Report, alternate, arguments, python, spread
from scipy.stats import t

METRICS = ("val_accuracy", "val_loss", "train_accuracy")


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=ROOT / "experiments/simple_cnn")
    parser.add_argument("params", nargs="*", help="after --: --key=value of params.json, for both")
    args = parser.parse_args()
    report = Report(args)
    with tempfile.TemporaryDirectory() as name:

        def program(precision: str) -> Callable[[int], dict[str, float]]:
            def train(seed: int) -> dict[str, float]:
                folder = Path(name) / f"{precision}_{seed}"
                flags = [f"--precision={precision}", f"--seed={seed}", "--observers=[]", *args.params]
                seconds = python(
                    ROOT / "train.py", "--base", args.base, "--model_dir", folder, "--data_dir", args.data_dir, *flags
                )
                last = json.loads((folder / "history.json").read_text())[-1]
                return {"seconds": seconds} | {metric: last[metric] for metric in METRICS}

            return train

        results = alternate({precision: program(precision) for precision in ("fp32", "bf16")}, args.rounds)
    rows = []
    for metric in (*METRICS, "seconds"):
        fp32, bf16 = ([run[metric] for run in results[precision]] for precision in ("fp32", "bf16"))
        cells = [metric, spread(fp32, 4), spread(bf16, 4)]
        if metric != "seconds":
            differences = [b - a for a, b in zip(fp32, bf16, strict=True)]
            error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
            half = float(t.ppf(0.975, len(differences) - 1)) * error
            cells.append(f"{statistics.mean(differences):+.4f} ± {half:.4f}")
        rows.append(cells)
    title = f"{args.base.name} {' '.join(args.params)}, the last epoch, by seeds"
    report.show(title, ["", "fp32", "bf16", "bf16 - fp32, mean ± 95 %"], rows)
    report.write(results=results)


if __name__ == "__main__":
    main()
