"""`build_dataset.py --check` on a large dataset folder with faults planted in it: how long, and are all found?

    python benchmarks/check_dataset.py --data_dir data/cifar10 --repeats 3

The folder is copied by hard links; the planted files are new ones.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def plant(data: Path, splits: list[str]) -> dict[str, list[str]]:
    """Faults of each kind -> the files that the report must name."""
    one, other = sorted(path.name for path in (data / splits[0]).iterdir())[:2]
    images = sorted((data / splits[0] / one).iterdir())
    first, second, last = data / splits[0] / one, data / splits[0] / other, data / splits[-1] / one
    (first / "planted_cut.png").write_bytes(images[0].read_bytes()[: images[0].stat().st_size // 2])
    (first / "planted_empty.png").write_bytes(b"")
    (first / "planted_text.png").write_text("not an image")
    shutil.copy(images[1], last / f"planted_double{images[1].suffix}")
    shutil.copy(images[2], second / f"planted_conflict{images[2].suffix}")
    return {
        "broken": ["planted_cut.png", "planted_empty.png", "planted_text.png"],
        "duplicates_across_splits": ["planted_double"],
        "label_conflicts": ["planted_conflict"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--splits", nargs="+", default=["train", "test"])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.data_dir.resolve().parent) as work:
        data, times, missed = Path(work) / "data", [], []
        for split in args.splits:
            shutil.copytree(args.data_dir / split, data / split, copy_function=os.link)
        planted = plant(data, args.splits)
        num = sum(len(files) for _, _, files in os.walk(data))
        for _ in range(args.repeats):
            begun = time.perf_counter()
            command = [sys.executable, str(ROOT / "build_dataset.py"), "--data_dir", str(data), "--check"]
            done = subprocess.run(command, capture_output=True, text=True)
            times.append(time.perf_counter() - begun)
            report = json.loads((data / "dataset_report.json").read_text())
            missed += [name for kind, names in planted.items() for name in names if name not in str(report[kind])]
    print(done.stdout)
    spread = f"median {statistics.median(times):.1f} s ({min(times):.1f} to {max(times):.1f})"
    print(f"{num:,} images, n = {args.repeats}, {os.cpu_count()} cores: {spread}")
    print(f"exit code {done.returncode}; planted faults missed: {missed or 'none'}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
