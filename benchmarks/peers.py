"""Lightning, fastai, timm, Poutyne, a plain loop and the best bare loop against train.py, on the same JPEG files.

    python benchmarks/peers.py --data_dir data/cifar10 --env ../peers-env --rounds 5 --precision default fp32
    python benchmarks/peers.py --data_dir data/cifar10 --env ../peers-env --net resnet18 --train 1280 --valid 256

The programs are in benchmarks/peers/, one file each, with the defaults of their library; all have the same net, batch
size, crop, mirror, normalisation, SGD and constant rate, and train for two epochs. `--env` names the folder of the
virtual environment that they run in; it is created when missing, with its own torch, which takes minutes.

Every program is a new process in an empty folder, and the kit's decoded cache is empty too (the page cache is warm for
all). "epoch 2" is from the end of the first epoch to the end of the second, each reported by the program when it has
trained, validated, logged and saved, so it covers everything once. The peers' default is fp32 throughout.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from harness import BENCHMARKS, ROOT, Report, against, alternate, arguments, link_images, ratio, run, spread

VERSIONS = "import json, sys; from importlib.metadata import version as v; print(json.dumps([*map(v, sys.argv[1:])]))"
REQUIREMENTS = BENCHMARKS / "peers-requirements.txt"
PEERS = ["lightning", "fastai", "timm", "poutyne", "naive"]
LIBRARIES = PEERS[:4]
EPOCH_BARS: dict[tuple[str, str], dict[str, float]] = {  # (net, precision): times that the kit's epoch is shorter
    ("simple_cnn", "default"): {"lightning": 3.2, "poutyne": 3.2, "timm": 3.2, "fastai": 4.0},
    ("simple_cnn", "fp32"): dict.fromkeys(LIBRARIES, 1.5),
    ("resnet18", "default"): {"lightning": 3.0},
}
COLD_BAR, BARE_BAR = 2.5, 1.02
KIT = {
    "batch_size": 128,
    "bs_test": 256,
    "learning_rate": 0.05,
    "momentum": 0.9,
    "wd": 5e-4,
    "scheduler": "constant",
    "augment": "flip_crop",
    "normalize": [[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]],
    "num_epochs": 2,
    "observers": ["tensorboard", "live_plot", "watch.py:Stamp"],
}

# --- the peers' environment ---------------------------------------------------------------------------


def pinned() -> dict[str, str]:
    """{package: version} of the requirements file."""
    lines = REQUIREMENTS.read_text().splitlines()
    return dict(line.strip().split("==") for line in lines if "==" in line)


def make_env(env: Path, share_torch: bool) -> Path:
    """The environment's Python; the environment is made when it is not there. Ends when its versions are others."""
    interpreter = env / "bin" / "python"
    if not interpreter.exists():
        print(f"making {env}", file=sys.stderr, flush=True)
        run([sys.executable, "-m", "venv", env])
        if share_torch:
            share(interpreter)
        run([interpreter, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS])
    wanted = pinned()
    _, told = run([interpreter, "-c", VERSIONS, *wanted])
    found = dict(zip(wanted, json.loads(told), strict=True))
    wrong = [f"{name} {found[name]} instead of {wanted[name]}" for name in wanted if found[name] != wanted[name]]
    if wrong:
        sys.exit(f"{env}: {', '.join(wrong)}; remove the folder, and it will be made again")
    return interpreter


def share(interpreter: Path) -> None:
    """Let the new environment see this one's packages behind its own: torch need not be installed twice."""
    wanted = {name: version for name, version in pinned().items() if name in ("torch", "torchvision")}
    found = {name: metadata.version(name).partition("+")[0] for name in wanted}
    if found != wanted:
        sys.exit(f"--share-torch: this environment has {found}, {REQUIREMENTS.name} wants {wanted}")
    _, told = run([interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    (Path(told.strip()) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")


# --- one run of a program ---------------------------------------------------------------------------------


def read_stamps(path: Path, started: float, wall: float) -> dict[str, float]:
    """Seconds since the process was started, and what the program says of its training."""
    stamps = [json.loads(line) for line in path.read_text().splitlines()]
    first_step = next(stamp["at"] for stamp in stamps if stamp["event"] == "first_step")
    epochs = [stamp for stamp in stamps if stamp["event"] == "epoch"]
    if len(epochs) != 2:
        sys.exit(f"{path} tells of {len(epochs)} epochs; 2 are expected")
    net = next((stamp for stamp in stamps if stamp["event"] == "net"), {})
    return {
        "first_step": first_step - started,
        "epoch_1": epochs[0]["at"] - started,
        "epoch_2": epochs[1]["at"] - epochs[0]["at"],
        "total": wall,
        "train_loss": epochs[1]["train_loss"],
        "val_accuracy": epochs[1]["val_accuracy"],
        "parameters": net.get("parameters", 0),
    }


def run_peer(interpreter: Path, name: str, precision: str, data: Path, args: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        stamps = Path(folder) / "stamps.jsonl"
        command = [interpreter, "-m", f"peers.{name}", "--data_dir", data, "--stamps", stamps, "--net", args.net]
        environment = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
        started = time.monotonic()
        wall, _ = run([*command, "--precision", precision], cwd=folder, env=environment)
        return read_stamps(stamps, started, wall)


def run_kit(precision: str, data: Path, args: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "experiment"
        folder.mkdir()
        shutil.copy(BENCHMARKS / "watch.py", folder)
        values = KIT | {"arch": args.net, "precision": "auto" if precision == "default" else precision}
        (folder / "params.json").write_text(json.dumps(values))
        command = [sys.executable, ROOT / "train.py", "--data_dir", data, "--model_dir", folder]
        started = time.monotonic()
        wall, _ = run([*command, "--cache_dir", Path(work) / "cache"])
        told = read_stamps(folder / "stamps.jsonl", started, wall)
        told["epoch_2_in_history"] = json.loads((folder / "history.json").read_text())[1]["seconds"]
        counted = re.search(r"([\d,]+) parameters", (folder / "train.log").read_text())
        return told | {"parameters": int(counted[1].replace(",", "")) if counted else 0}


# --- all of them --------------------------------------------------------------------------------------------


def programs(interpreter: Path, data: Path, args: argparse.Namespace) -> dict[str, Callable[[int], dict[str, float]]]:
    def peer(name: str, precision: str = "default") -> Callable[[int], dict[str, float]]:
        return lambda _: run_peer(interpreter, name, precision, data, args)

    def kit(precision: str) -> Callable[[int], dict[str, float]]:
        return lambda _: run_kit(precision, data, args)

    found = {name: peer(name) for name in args.peers}
    for precision in args.precision:
        found |= {f"bare, {precision}": peer("bare", precision), f"kit, {precision}": kit(precision)}
    return found


def rows(results: dict[str, list[dict[str, float]]], precision: str, args: argparse.Namespace) -> list[list[str]]:
    """Every program against the kit at this precision."""
    bars = EPOCH_BARS.get((args.net, precision), {})
    kit, bare = f"kit, {precision}", f"bare, {precision}"

    def column(name: str, key: str) -> list[float]:
        return [one[key] for one in results[name]]

    made = []
    for name in [*args.peers, bare, kit]:
        cells = [name]
        epoch_bar = bars.get(name)
        cold_bar = COLD_BAR if name in PEERS and (args.net, precision) == ("simple_cnn", "default") else None
        for key, bar in (("epoch_2", epoch_bar), ("first_step", None), ("total", cold_bar)):
            cells.append(spread(column(name, key)))
            if key != "first_step":
                cells.append(against(ratio(column(name, key), column(kit, key)), bar))
        cells.append(f"{statistics.median(column(name, 'train_loss')):.2f}")
        made.append([*cells, f"{statistics.median(column(name, 'val_accuracy')):.3f}"])
    return made


def show(results: dict[str, list[dict[str, float]]], report: Report, args: argparse.Namespace) -> None:
    epoch, total = "epoch 2, s: median (min to max)", "two epochs from a cold process, s"
    headers = ["program", epoch, "of the kit's", "start to first step, s", total, "of the kit's"]
    for precision in args.precision:
        title = f"{args.net}, {args.train} training and {args.valid} validation images, kit and bare loop: {precision}"
        found = rows(results, precision, args)
        report.show(title, [*headers, "training loss", "validation accuracy"], found)
        kit, bare = ([one["epoch_2"] for one in results[f"{name}, {precision}"]] for name in ("kit", "bare"))
        print(f"the kit's epoch against the bare loop's: {against(ratio(kit, bare), BARE_BAR, at_most=True)}")
        row_2 = [one["epoch_2_in_history"] for one in results[f"kit, {precision}"]]
        print(f"the kit's epoch 2 as history.json has it, training and validation alone: {spread(row_2)} s")


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--data_dir", type=Path, required=True, help="CIFAR-10 as build_dataset.py makes it")
    parser.add_argument("--env", type=Path, required=True, help="folder of the peers' environment")
    parser.add_argument("--share-torch", action="store_true", help="a new environment uses this one's torch")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--net", choices=["simple_cnn", "resnet18"], default="simple_cnn")
    parser.add_argument("--precision", nargs="+", choices=["default", "fp32"], default=["default"])
    parser.add_argument("--train", type=int, default=3840, help="so many training images")
    parser.add_argument("--valid", type=int, default=640, help="and validation images, of the same split")
    args = parser.parse_args()
    interpreter = make_env(args.env.absolute(), args.share_torch)
    report = Report(args)
    with tempfile.TemporaryDirectory() as work:
        data = Path(work) / "data"
        link_images(args.data_dir / "train", data, {"train": args.train, "valid": args.valid})
        results = alternate(
            programs(interpreter, data, args),
            args.rounds,
            after=lambda results: report.write(versions=pinned(), programs=results),
        )
    counts = {name: ones[0]["parameters"] for name, ones in results.items()}
    if len(set(counts.values())) > 1:
        sys.exit(f"the nets differ in their number of parameters: {counts}")
    show(results, report, args)


if __name__ == "__main__":
    main()
