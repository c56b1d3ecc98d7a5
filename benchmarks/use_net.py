"""A trained net from Python, net([paths]), against evaluate.py on the same images: images per second.

    python benchmarks/use_net.py --data_dir data/cifar10 --model_dir experiments/resnet9 --split test --images 2000

Both start from files: evaluate.py once without its cache of decoded images, once with it (which load() has no use for:
it is asked about images that nobody has seen). CPU seconds stand beside the others, for machines that are busy.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness import ROOT, Report, against, alternate, arguments, link_images, ratio, spread

sys.path.insert(0, str(ROOT))
from predict import load

BAR = 0.8
OURS, FROM_FILES, FROM_CACHE = "load(), a list of paths", "evaluate.py, from files", "evaluate.py, from its cache"
Timing = tuple[float, float]  # seconds, CPU seconds of this process and its children


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def timed(work: Callable[[], object]) -> Timing:
    begun, used = time.perf_counter(), cpu_seconds()
    work()
    return time.perf_counter() - begun, cpu_seconds() - used


def programs(args: argparse.Namespace, data_dir: Path) -> dict[str, Callable[[int], Timing]]:
    """What is timed, by name. All use one net, which is loaded before."""
    from engine.use.evaluation import collect_outputs
    from engine.use.inference import load_params
    from folder.folder import Folder
    from model.data_loader import fetch_dataloader

    net = load(args.model_dir, code="tree")
    paths = sorted(str(path) for path in (data_dir / "test").rglob("*") if path.is_file())

    def evaluate(cache: str) -> None:
        params = load_params(Folder(args.model_dir), {"cache": cache}, net.trained.kit["resize"])
        place = {"device": net.trained.device, "pinned": net.trained.pinned}
        loader = fetch_dataloader(["test"], data_dir, params, **place)["test"]
        assert len(collect_outputs(net.trained, loader).logits) == len(paths)

    evaluate("disk")  # makes the cache
    return {
        OURS: lambda _: timed(lambda: net(paths)),
        FROM_FILES: lambda _: timed(lambda: evaluate("off")),
        FROM_CACHE: lambda _: timed(lambda: evaluate("disk")),
    }


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--model_dir", type=Path, required=True, help="trained")
    parser.add_argument("--split", default="test", help="the class folders to take the images from")
    parser.add_argument("--images", type=int, default=2000)
    args = parser.parse_args()
    report = Report(args)
    with tempfile.TemporaryDirectory() as name:
        data_dir = Path(name) / "data"
        link_images(args.data_dir / args.split, data_dir, {"test": args.images, "train": 2})
        times = alternate(programs(args, data_dir), args.rounds)
        number = sum(path.is_file() for path in (data_dir / "test").rglob("*"))
    speeds = {program: [number / seconds for seconds, _ in of_it] for program, of_it in times.items()}
    cpu = {program: [1000 * used / number for _, used in of_it] for program, of_it in times.items()}
    rows = [
        [
            program,
            spread(speeds[program], 0),
            spread(cpu[program]),
            against(ratio(speeds[OURS], speeds[program]), BAR if program == FROM_FILES else None),
        ]
        for program in times
    ]
    heads = ["", "images per second", "CPU ms per image", "load() against it"]
    report.show(f"{number} images of {args.data_dir.name}, {args.model_dir.name}", heads, rows)
    report.write(times=times)


if __name__ == "__main__":
    main()
