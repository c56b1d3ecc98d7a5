"""`build_dataset.py --check` on a large dataset folder with faults planted in it: how long, and are all found?

    python benchmarks/check_dataset.py --data_dir data/cifar10 --rounds 3

The folder is copied by hard links; the planted files are new ones.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from harness import ROOT, Report, alternate, arguments, python, spread


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
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--splits", nargs="+", default=["train", "test"])
    args = parser.parse_args()
    report = Report(args)
    with tempfile.TemporaryDirectory(dir=args.data_dir.resolve().parent) as work:
        data = Path(work) / "data"
        for split in args.splits:
            shutil.copytree(args.data_dir / split, data / split, copy_function=os.link)
        planted = plant(data, args.splits)
        num = sum(len(files) for _, _, files in os.walk(data))
        missed: list[str] = []

        def check(number: int) -> float:
            seconds = python(ROOT / "build_dataset.py", "--data_dir", data, "--check")
            found = json.loads((data / "dataset_report.json").read_text())
            missed.extend(name for kind, names in planted.items() for name in names if name not in str(found[kind]))
            return seconds

        times = alternate({"build_dataset.py --check": check}, args.rounds)
    rows = [[name, f"{num:,}", spread(values), ", ".join(missed) or "none"] for name, values in times.items()]
    report.show("Checking a dataset", ["what", "images", "seconds, median (min to max)", "planted faults missed"], rows)
    report.write(images=num, seconds=times, missed=missed)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
