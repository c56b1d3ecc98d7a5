"""The cs230 template's own vision code and this kit on the same SIGNS files, alternating, several seeds.

    git clone https://github.com/cs230-stanford/cs230-code-examples
    python benchmarks/cs230_parity.py --peer cs230-code-examples/pytorch/vision --signs 64x64_SIGNS --seeds 5

Both train with the values of the template's experiments/base_model/params.json, as whole processes with
default thread settings, and evaluate on the test images. The peer runs from a temporary copy in which one
thing is changed: its fixed seed 230 becomes the seed of the run.
"""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(command: list[object], cwd: Path) -> float:
    """Seconds of a whole process."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - begun


def peer(source: Path, signs: Path, seed: int, work: Path) -> dict[str, float]:
    copy = work / f"peer_{seed}"
    shutil.copytree(source, copy)
    script = copy / "train.py"
    script.write_text(script.read_text().replace("manual_seed(230)", f"manual_seed({seed})"))
    flags = ["--data_dir", signs, "--model_dir", "experiments/base_model"]
    seconds = run(["train.py", *flags], copy)
    run(["evaluate.py", *flags], copy)
    folder = copy / "experiments/base_model"
    valid = json.loads((folder / "metrics_val_best_weights.json").read_text())
    test = json.loads((folder / "metrics_test_best.json").read_text())
    return {"valid": valid["accuracy"], "test": test["accuracy"], "seconds": seconds}


def kit(data: Path, seed: int, work: Path) -> dict[str, float]:
    folder = work / f"kit_{seed}"
    base = ["--base", ROOT / "experiments/base_model", "--model_dir", folder, f"--seed={seed}"]
    seconds = run([ROOT / "train.py", "--data_dir", data, *base], work)
    run([ROOT / "evaluate.py", "--data_dir", data, "--model_dir", folder], work)
    valid = json.loads((folder / "metrics_val_best_weights.json").read_text())
    test = json.loads((folder / "metrics_test_best.json").read_text())
    return {"valid": valid["accuracy"], "test": test["accuracy"], "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="pytorch/vision of a checkout of cs230-code-examples")
    parser.add_argument("--signs", type=Path, required=True, help="64x64_SIGNS, unpacked")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every number there")
    args = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {"cs230": [], "this kit": []}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        data = work / "signs"
        run([ROOT / "build_dataset.py", "--source", args.signs.resolve(), "--data_dir", data], work)
        for seed in range(args.seeds):
            results["cs230"].append(peer(args.peer.resolve(), args.signs.resolve(), seed, work))
            results["this kit"].append(kit(data, seed, work))
            print(f"seed {seed}: {results['cs230'][-1]} {results['this kit'][-1]}", flush=True)
    print(f"\nn = {args.seeds} seeds, {platform.processor() or platform.machine()}, Python {platform.python_version()}")
    print(
        "| program | best validation accuracy, mean (min to max) | test accuracy, mean (min to max) | seconds, median |"
    )
    print("|---|---|---|---|")
    for program, rows in results.items():
        cells = []
        for key in ("valid", "test"):
            values = [row[key] for row in rows]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"| {program} | {cells[0]} | {cells[1]} | {statistics.median(row['seconds'] for row in rows):.1f} |")
    times = [statistics.median(row["seconds"] for row in results[program]) for program in ("this kit", "cs230")]
    print(f"\nwall time: {times[0] / times[1]:.2f} of cs230's")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
