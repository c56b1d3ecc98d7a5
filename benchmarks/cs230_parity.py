"""The cs230 template's own vision code and this kit on the same SIGNS files, alternating, several seeds.

    git clone https://github.com/cs230-stanford/cs230-code-examples
    python benchmarks/cs230_parity.py --peer cs230-code-examples/pytorch/vision --signs 64x64_SIGNS --rounds 5

Both train with the values of the template's experiments/base_model/params.json, as whole processes with
default thread settings, and evaluate on the test images. The peer runs from a temporary copy in which one
thing is changed: its fixed seed 230 becomes the seed of the run.
"""

import json
import shutil
import statistics
import tempfile
from pathlib import Path

from harness import ROOT, Report, alternate, arguments, python, ratio, spread


def accuracies(folder: Path) -> dict[str, float]:
    valid = json.loads((folder / "metrics_val_best_weights.json").read_text())
    test = json.loads((folder / "metrics_test_best.json").read_text())
    return {"valid": valid["accuracy"], "test": test["accuracy"]}


def peer(source: Path, signs: Path, seed: int, work: Path) -> dict[str, float]:
    copy = work / f"peer_{seed}"
    shutil.copytree(source, copy)
    script = copy / "train.py"
    script.write_text(script.read_text().replace("manual_seed(230)", f"manual_seed({seed})"))
    flags = ["--data_dir", signs, "--model_dir", "experiments/base_model"]
    seconds = python("train.py", *flags, cwd=copy)
    python("evaluate.py", *flags, cwd=copy)
    folder = copy / "experiments/base_model"
    return accuracies(folder) | {"seconds": seconds}


def kit(data: Path, seed: int, work: Path) -> dict[str, float]:
    folder = work / f"kit_{seed}"
    base = ["--base", ROOT / "experiments/base_model", "--model_dir", folder, f"--seed={seed}"]
    seconds = python(ROOT / "train.py", "--data_dir", data, *base, cwd=work)
    python(ROOT / "evaluate.py", "--data_dir", data, "--model_dir", folder, cwd=work)
    return accuracies(folder) | {"seconds": seconds}


def mean(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--peer", type=Path, required=True, help="pytorch/vision of a checkout of cs230-code-examples")
    parser.add_argument("--signs", type=Path, required=True, help="64x64_SIGNS, unpacked")
    args = parser.parse_args()
    report = Report(args)
    source, signs = args.peer.resolve(), args.signs.resolve()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        data = work / "signs"
        python(ROOT / "build_dataset.py", "--source", signs, "--data_dir", data)
        programs = {
            "cs230": lambda seed: peer(source, signs, seed, work),
            "this kit": lambda seed: kit(data, seed, work),
        }
        results = alternate(programs, args.rounds)
    keys = ("valid", "test", "seconds")
    columns = {name: {key: [row[key] for row in rows] for key in keys} for name, rows in results.items()}
    rows = [[name, mean(of["valid"]), mean(of["test"]), spread(of["seconds"], 1)] for name, of in columns.items()]
    headers = ["best validation accuracy, mean (min to max)", "test accuracy, mean (min to max)", "seconds, median"]
    report.show("The experiment of the CS230 template, a seed per round", ["program", *headers], rows)
    print(f"wall time: {ratio(columns['this kit']['seconds'], columns['cs230']['seconds']):.2f} of cs230's")
    report.write(runs=results)


if __name__ == "__main__":
    main()
