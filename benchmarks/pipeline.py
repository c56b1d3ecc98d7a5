"""Images per second of data pipelines: from files to normalised, augmented float batches, ready for a net.

    python benchmarks/pipeline.py --data_dir data/cifar10 --photos data/hymenoptera --rounds 3
    python benchmarks/pipeline.py --data_dir data/cifar10 --photos data/hymenoptera --rows all --images 20000

Small images are padded by 4 px, cropped to 32 and mirrored, in batches of 500; photographs are cropped at random,
resized to 224 px and mirrored, in batches of 64. Every pipeline runs in its own process in each round, with the
threads that its users would have: it makes whole epochs until --seconds are over (the first one counts too, as do
starting its workers and ending them). "set-up" is what comes before the first epoch: listing files, and whatever the
kit decodes. The page cache is warm for all.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import ROOT, Report, against, alternate, arguments, link_images, ratio, run, spread

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
Batches = Callable[[int], Iterable[Any]]  # epoch -> batches, the images first
Prepare = Callable[[], Batches]  # timed as set-up; imports have been done by then

# --- the roads: folder -> how to get at the batches of an epoch ------------------------------------------


def torchvision_loader(folder: Path, workers: int, size: int, version: str) -> Prepare:
    """ImageFolder and transforms, as torchvision's documentation and reference scripts have them."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    if version == "v1":
        from torchvision import transforms as t

        to_tensor = [t.ToTensor()]
    else:
        from torchvision.transforms import v2 as t

        to_tensor = [t.ToImage(), t.ToDtype(torch.float32, scale=True)]

    def prepare() -> Batches:
        crop = t.RandomCrop(32, padding=4) if size == 32 else t.RandomResizedCrop(size)
        pipeline = t.Compose([crop, t.RandomHorizontalFlip(), *to_tensor, t.Normalize(MEAN, STD)])
        images = ImageFolder(str(folder / "train"), pipeline)
        loader = DataLoader(images, batch_size(size), shuffle=True, num_workers=workers)
        return lambda epoch: loader

    return prepare


def torchvision_io(folder: Path, workers: int, size: int) -> Prepare:
    """torchvision's own decoder, and transforms v2 on uint8 tensors."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2 as t

    def load(path: str) -> torch.Tensor:
        return decode_jpeg(read_file(path), mode=ImageReadMode.RGB)

    def prepare() -> Batches:
        crop = t.RandomCrop(32, padding=4) if size == 32 else t.RandomResizedCrop(size)
        to_float = [t.ToDtype(torch.float32, scale=True), t.Normalize(MEAN, STD)]
        images = ImageFolder(str(folder / "train"), t.Compose([crop, t.RandomHorizontalFlip(), *to_float]), loader=load)
        loader = DataLoader(images, batch_size(size), shuffle=True, num_workers=workers)
        return lambda epoch: loader

    return prepare


def albumentations_loader(folder: Path, workers: int, size: int) -> Prepare:
    """cv2 and albumentations in a Dataset of one's own, as its documentation shows."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or it looks for a newer version on the network
    import albumentations as A
    import cv2
    from albumentations.pytorch import ToTensorV2
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    class Folder(ImageFolder):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            path, label = self.samples[index]
            image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
            return self.transform(image=image)["image"], label

    def prepare() -> Batches:
        crop = [A.Pad(4), A.RandomCrop(32, 32)] if size == 32 else [A.RandomResizedCrop((size, size))]
        pipeline = A.Compose([*crop, A.HorizontalFlip(p=0.5), A.Normalize(MEAN, STD), ToTensorV2()])
        images = Folder(str(folder / "train"), pipeline)
        loader = DataLoader(images, batch_size(size), shuffle=True, num_workers=workers)
        return lambda epoch: loader

    return prepare


def kit_loader(folder: Path, cache_dir: Path, size: int, cache: str, workers: int | None) -> Prepare:
    """The kit as train.py uses it: threads and memory as it sets them, workers as it chooses when None are given."""
    sys.path.insert(0, str(ROOT))
    import params as kit_params
    from engine import precision
    from model.data_loader import fetch_dataloader

    values = {"im_sz": size, "batch_size": batch_size(size), "cache": cache, "normalize": [list(MEAN), list(STD)]}
    values |= {} if workers is None else {"num_workers": workers}
    params = kit_params.from_written(values, folder)
    precision.apply(precision.choose(params, "cpu", 0), params)
    return lambda: fetch_dataloader(["train"], folder, params, cache_dir=cache_dir)["train"].batches


def batch_size(size: int) -> int:
    return 500 if size == 32 else 64


@dataclass(frozen=True)
class Road:
    """One row. `make(folder, cache_dir)` does the imports."""

    make: Callable[[Path, Path], Prepare]
    is_main: bool = False  # a row of the default table
    cache: str = ""  # the kit's: where decoded images are; "" for others
    is_cold: bool = False  # nothing decoded is there before
    counts_setup: bool = False  # images/s of set-up and one epoch together
    bars: dict[str, float] = field(default_factory=dict)  # road that is compared -> at least so many times faster


def kit(size: int, cache: str, bars: dict[str, float], workers: int | None = None, **kwargs: bool) -> Road:
    def make(folder: Path, cache_dir: Path) -> Prepare:
        return kit_loader(folder, cache_dir, size, cache, workers)

    return Road(make, True, cache, bars=bars, **kwargs)


def peer(maker: Callable[..., Prepare], main: bool = False, **kwargs: Any) -> Road:
    return Road(lambda folder, cache_dir: maker(folder, **kwargs), main)


def roads(size: int) -> dict[str, Road]:
    """Every road for images of `size` px, the compared ones first."""
    found = {}
    for workers in (2, 1, 0):
        if size > 32 and workers == 1:
            continue
        name = f"{workers} workers" if workers != 1 else "1 worker"
        given = {"workers": workers, "size": size}
        found[f"ImageFolder, transforms v1, {name}"] = peer(torchvision_loader, workers != 1, **given, version="v1")
        found[f"ImageFolder, transforms v2, {name}"] = peer(torchvision_loader, **given, version="v2")
        found[f"decode_jpeg, transforms v2, {name}"] = peer(torchvision_io, **given)
        found[f"cv2, albumentations, {name}"] = peer(albumentations_loader, workers == 2 and size == 32, **given)
    two, none = (f"ImageFolder, transforms v1, {workers} workers" for workers in (2, 0))
    cv2 = "cv2, albumentations, 2 workers"
    if size == 32:
        found["kit, decoded cache"] = kit(size, "disk", {two: 30, cv2: 10})
        found["kit, cache: off"] = kit(size, "off", {two: 5})
        found["kit, cache: off, 0 workers"] = kit(size, "off", {none: 5}, workers=0)
        found["kit, building the cache and an epoch"] = kit(size, "disk", {two: 5}, is_cold=True, counts_setup=True)
    else:
        for cache, bar in (("off", 2), ("jpeg", 4), ("disk", 20)):
            found[f"kit, cache: {cache}, 2 workers"] = kit(size, cache, {two: bar}, workers=2)
            found[f"kit, cache: {cache}, 0 workers"] = kit(size, cache, {none: bar}, workers=0)
    return found


# --- one road, in a process of its own --------------------------------------------------------------------


def drive(name: str, size: int, folder: Path, cache_dir: Path, seconds: float) -> dict[str, Any]:
    """Whole epochs until `seconds` are over, one at least."""
    road = roads(size)[name]
    try:
        prepare = road.make(folder, cache_dir)
    except Exception as error:
        if type(error).__name__ != "UserError" or f'cache: "{road.cache}" given' not in str(error):
            raise
        return {"skipped": str(error).partition("params.json: ")[2]}
    begun = time.perf_counter()
    batches = prepare()
    setup = time.perf_counter() - begun
    num_images = epoch = 0
    begun = time.perf_counter()
    while not epoch or (time.perf_counter() - begun < seconds and not road.counts_setup):
        for batch in batches(epoch):
            assert batch[0].shape[1:] == (3, size, size)
            assert batch[0].is_floating_point()
            num_images += len(batch[0])
        epoch += 1
    took = time.perf_counter() - begun
    rate = num_images / (took + setup if road.counts_setup else took)
    return {"setup": setup, "seconds": took, "epochs": epoch, "images": num_images, "images_per_second": rate}


# --- all of them --------------------------------------------------------------------------------------------


def measure(folder: Path, size: int, work: Path, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """{road: what drive gave, per round}. A road that the kit refuses is told of and left out."""

    def go(name: str, seconds: float, cache_dir: Path) -> dict[str, Any]:
        command = [sys.executable, __file__, "--road", name, "--size", size, "--folder", folder]
        _, told = run([*command, "--cache_dir", cache_dir, "--seconds", seconds])
        return json.loads(told.splitlines()[-1])

    def program(name: str, road: Road) -> Callable[[int], dict[str, Any]]:
        def one(number: int) -> dict[str, Any]:
            if not road.is_cold:
                return go(name, args.seconds, work / f"cache_{size}_{road.cache}")
            with tempfile.TemporaryDirectory(dir=work) as fresh:
                return go(name, args.seconds, Path(fresh))

        return one

    programs = {}
    for name, road in roads(size).items():
        if args.rows == "main" and not road.is_main:
            continue
        if road.cache and not road.is_cold:
            first = go(name, 0, work / f"cache_{size}_{road.cache}")
            if "skipped" in first:
                print(f"left out: {name}: {first['skipped']}", flush=True)
                continue
        programs[name] = program(name, road)
    return alternate(programs, args.rounds)


def rows(results: dict[str, list[dict[str, Any]]], size: int) -> list[list[str]]:
    """road, images/s, set-up, ratios to the compared roads with their bars."""
    rates = {name: [one["images_per_second"] for one in ones] for name, ones in results.items()}
    compared = compared_roads(results, size)
    made = []
    for name, ones in results.items():
        road = roads(size)[name]
        cells = [name, spread(rates[name], 0), spread([one["setup"] for one in ones])]
        for other in compared:
            cells.append(against(ratio(rates[name], rates[other]), road.bars.get(other)))
        made.append(cells)
    return made


def compared_roads(results: dict[str, list[dict[str, Any]]], size: int) -> list[str]:
    """Those that have a column."""
    named = [other for road in roads(size).values() for other in road.bars]
    return [name for name in dict.fromkeys(named) if name in results]


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--data_dir", type=Path, help="folder of small JPEG files, as build_dataset.py makes it")
    parser.add_argument("--photos", type=Path, help="folder of photographs, as build_dataset.py makes it")
    parser.add_argument("--images", type=int, default=10_000, help="so many small images")
    parser.add_argument("--num_photos", type=int, default=960, help="so many photographs; each file is used 4 times")
    parser.add_argument("--rows", choices=["main", "all"], default="main", help="main: what the bars are about")
    parser.add_argument("--seconds", type=float, default=1.5, help="each road drives at least so long")
    for flag, kind in (("--road", str), ("--size", int), ("--folder", Path), ("--cache_dir", Path)):
        parser.add_argument(flag, type=kind, help=argparse.SUPPRESS)  # of the process that drives one road
    args = parser.parse_args()
    if args.road:
        print(json.dumps(drive(args.road, args.size, args.folder, args.cache_dir, args.seconds)))
        return
    if not (args.data_dir or args.photos):
        parser.error("give --data_dir, --photos or both")
    report, raw = Report(args), {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        kinds = ((32, args.data_dir, args.images, 1, 10), (224, args.photos, args.num_photos, 4, 2))
        for size, source, num_images, copies, num_valid in kinds:
            if not source:
                continue
            folder = work / f"images_{size}"
            link_images(source / "train", folder, {"train": num_images, "valid": num_valid}, copies)
            raw[str(size)] = measure(folder, size, work, args)
            kind = "small images -> 32 px" if size == 32 else "photographs -> 224 px"
            columns = [f"of {name}" for name in compared_roads(raw[str(size)], size)]
            headers = ["road", "images/s, median (min to max)", "set-up, s", *columns]
            report.show(f"{num_images:,} {kind}", headers, rows(raw[str(size)], size))
    report.write(roads=raw)


if __name__ == "__main__":
    main()
