"""What the kit does per image before the first one is read, tried at up to 100 million: seconds and memory.

    python benchmarks/scale_index.py --samples 1e6 1e7 1e8 --listing 200000 --json scale_index.json

Names are made up and pixels are zeros; everything else is what train.py runs: the columns of the index, the
fingerprint, the split by content, class counts, the order of an epoch, batches at step 0 and in the middle.
One process per number of samples, so that each has its own peak of memory: about 115 bytes per sample, of
which 26 are the name. `--listing` also lists so many real, empty files in a temporary folder.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import params as parameters  # noqa: E402 (the kit is above this folder)
from model.data_loader import Loader  # noqa: E402
from model.images.index import Index, Listing, index_split  # noqa: E402
from model.images.order import make_order, position_dtype  # noqa: E402
from model.images.source import Source, subset  # noqa: E402
from model.images.subsets import split_by_content  # noqa: E402

BATCH = 256
TITLES = {
    "columns": "columns of the index, from names",
    "state": "state of the cache",
    "fingerprint": "fingerprint",
    "split": "1 % split off by content",
    "parts": "train and valid as parts",
    "class_counts": "class counts",
    "order": "order of an epoch",
    "balanced": "order of an epoch, balanced",
    "first": "first batch of an epoch",
    "middle": "first batch from the middle on",
    "workers": "first batch, 2 workers",
    "batch": "every further batch",
}


def memory(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since reset_peak()."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak of the resident size


class Record:
    """What each stage took: seconds, and the peak of memory in it."""

    def __init__(self) -> None:
        self.empty = memory("VmRSS")
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}

    def run(self, name: str, job: Callable[[], Any]) -> Any:
        reset_peak()
        begun = time.perf_counter()
        result = job()
        self.seconds[name] = time.perf_counter() - begun
        self.peaks[name] = memory("VmHWM") - self.empty
        return result


def make_index(num: int, num_classes: int) -> Index:
    """`num` made-up names, 26 bytes each, in equal classes."""
    listing, counts = Listing(), []
    for label in range(num_classes):
        before, folder = len(listing), f"train/{label:06d}/"
        for number in range(label * num // num_classes, (label + 1) * num // num_classes):
            when = 1_700_000_000_000_000_000 + number
            listing.add(f"{folder}{number:09d}.jpg", 110_000, when, when)
        counts.append(len(listing) - before)
    return listing.index(Path(), "train", [f"{label:06d}" for label in range(num_classes)], counts)


def make_source(index: Index) -> Source:
    """`index` with random digests, and images of 8 px that take no memory."""
    num = len(index)
    digests = np.frombuffer(np.random.default_rng(0).bytes(16 * num), np.uint8).reshape(num, 16)
    images = np.broadcast_to(np.zeros((1, 8, 8, 3), np.uint8), (num, 8, 8, 3))
    return Source(index, digests, images, np.arange(num, dtype=position_dtype(num)), 8, "crop", "ram")


def try_source(record: Record, num: int, num_classes: int) -> Source:
    """From names to the training part; the whole is let go."""
    index = record.run("columns", lambda: make_index(num, num_classes))
    record.run("state", lambda: index.state(1))
    whole = make_source(index)
    record.run("fingerprint", whole.fingerprint)
    is_valid = record.run("split", lambda: split_by_content(whole, 0.01))
    sides = (("train", ~is_valid), ("valid", is_valid))
    train, valid = record.run("parts", lambda: [subset(whole, mask, split) for split, mask in sides])
    assert len(train.index) + len(valid.index) == num
    return train


def try_loader(record: Record, train: Source) -> int:
    """The order of an epoch and the first batches of it; returns the step in the middle that was tried."""

    def loader(**values: Any) -> Loader:
        params = parameters.from_resolved({"batch_size": BATCH, "num_workers": 0, "augment": "none"} | values, Path())
        pinned = {"classes": train.index.classes, "mean": [0.5] * 3, "std": [0.5] * 3, "im_sz": 8}
        order = make_order(train.index.labels, True, params)
        return Loader(train, order, params, pinned, "")

    plain, middle = loader(), len(train.index) // BATCH * 3 // 4
    record.run("order", lambda: plain.order.positions(0))
    record.run("first", lambda: next(plain.batches(0)))
    running = plain.batches(0, middle)
    record.run("middle", lambda: next(running))
    begun = time.perf_counter()
    further = sum(1 for _ in zip(range(200), running, strict=False))
    record.seconds["batch"] = (time.perf_counter() - begun) / further
    running.close()
    running = loader(num_workers=2).batches(0, middle)
    record.run("workers", lambda: next(running))
    running.close()
    if len(train.index) <= 20_000_000:
        record.run("balanced", lambda: loader(sampler="balanced").order.positions(0))
    return middle


def try_one(num: int, num_classes: int) -> dict[str, Any]:
    """All stages at `num` samples, in this process."""
    record = Record()
    train = try_source(record, num, num_classes)
    gc.collect()
    at_rest = memory("VmRSS") - record.empty
    record.run("class_counts", train.class_counts)
    middle = try_loader(record, train)
    peaks = record.peaks
    return {
        "samples": num,
        "classes": num_classes,
        "middle_step": middle,
        "name_bytes": 26,
        "seconds": record.seconds,
        "peak_bytes": peaks,
        "at_rest_bytes": at_rest,
        "peak": max(peaks[name] for name in peaks if name != "balanced"),
    }


def try_listing(num: int, num_classes: int, repeats: int = 5) -> dict[str, Any]:
    """index_split of `num` real, empty files in `num_classes` folders; the file system's cache is warm."""
    with tempfile.TemporaryDirectory() as work:
        for label in range(num_classes):
            folder = Path(work) / "train" / f"{label:06d}"
            folder.mkdir(parents=True)
            for number in range(label * num // num_classes, (label + 1) * num // num_classes):
                os.close(os.open(folder / f"{number:09d}.jpg", os.O_CREAT | os.O_WRONLY))
        times = []
        for _ in range(repeats):
            begun = time.perf_counter()
            index = index_split(Path(work) / "train", "train", Path(work))
            times.append(time.perf_counter() - begun)
            assert len(index) == num
    return {"files": num, "classes": num_classes, "seconds": times, "files_per_second": num / statistics.median(times)}


def show(results: dict[str, Any]) -> None:
    runs = results["runs"]
    print(f"{'seconds':36}" + "".join(f"{run['samples']:>15,}" for run in runs))
    for name, title in TITLES.items():
        values = [run["seconds"].get(name) for run in runs]
        print(f"{title:36}" + "".join(f"{'-' if value is None else format(value, '.4f'):>15}" for value in values))
    for title, key in (("at rest", "at_rest_bytes"), ("at most", "peak")):
        values = [run[key] / run["samples"] for run in runs]
        print(f"{'bytes per sample, ' + title:36}" + "".join(f"{value:>15.1f}" for value in values))
    for run in results["listings"]:
        num, times = f"{run['files']:,} files in {run['classes']} folders", run["seconds"]
        rate, spread = f"{run['files_per_second']:,.0f} a second", f"{min(times):.2f} to {max(times):.2f} s"
        print(f"{num}: {rate} (n = {len(times)}, {spread})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", nargs="*", type=float, default=[1e6, 1e7, 1e8])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--listing", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(try_one(int(args.samples[0]), args.classes)))
        return
    results: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "runs": [], "listings": []}
    for num in args.samples:
        command = [sys.executable, __file__, "--one", "--classes", str(args.classes), "--samples", str(num)]
        results["runs"].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    if args.listing:
        results["listings"] = [try_listing(args.listing, num_classes) for num_classes in (200, 2)]
    show(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
