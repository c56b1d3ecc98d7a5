"""Measure a trained net on the test split, once you have chosen it.

    python evaluate.py --data_dir data/cifar10 --model_dir experiments/resnet18
    python evaluate.py --model_dir experiments/resnet18 --split valid --restore_file last

Writes metrics_test_best.json and evaluation/ into the experiment folder. Each look at the test split is
recorded, and tables show the number of looks: choose by the validation metrics.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from folder.arguments import Parser
from folder.folder import Folder, now
from folder.locate import find_trained_data
from include import EVALUATION, SPLIT_SYNONYMS, SPLITS
from utils import JsonObject, UserError, nearest, reference_name, run_script, to_json, write_json

if TYPE_CHECKING:  # torch is imported by the functions that use it: --help answers at once
    from engine.protocols import Loader
    from engine.use.inference import Trained
    from params import Params


def make_parser() -> Parser:
    parser = Parser("evaluate.py", __doc__)
    add = parser.add_argument
    add("folder", nargs="?", help="the experiment folder (the same as --model_dir)")
    add("--model_dir", metavar="M", help="the experiment folder, trained")
    add("--data_dir", metavar="D", help="dataset folder (default: the one it was trained with)")
    add("--restore_file", metavar="W", default="best", help="weights: best (default), last or a file")
    add("--split", default="test", help="test (default), valid or train (without augmentation)")
    add("--out", type=Path, metavar="DIR", help="write there instead of into the experiment folder")
    add("--cache_dir", type=Path, metavar="DIR", help="for decoded images (default: .cache beside the data)")
    add("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    parser.epilog = (
        'Parameters that do not change the net can be given: --bs_test=64 --device=cpu --metrics=\'["f1", "auc"]\''
    )
    return parser


@dataclass(frozen=True)
class EvaluationRequest:
    """The request of the command line."""

    split: str
    restore_file: str  # weights: best, last or a file
    data_dir: str | None
    out: Path | None  # where to write, when not into the experiment folder
    cache_dir: Path | None
    say: Callable[[str], None]  # prints to the console


def parse_split(name: str) -> str:
    """train, valid or test. UserError for any other name."""
    split = str(SPLIT_SYNONYMS.get(name, name))
    if split not in SPLITS:
        raise UserError(f"--split: unknown split {split!r}; {nearest(split, SPLITS)}")
    return split


def evaluate(folder: Folder, request: EvaluationRequest, overrides: JsonObject) -> JsonObject:
    """Weights -> logits of every image -> metrics, the record of the look, tables and pictures."""
    from engine.use.evaluation import class_table, collect_outputs, measure, show_in_tensorboard, write_evaluation
    from engine.use.inference import load_params, load_trained
    from model.metric import make_metrics
    from model.net import make_net
    from model.tta import average_views

    # Build everything that the evaluation needs; mistakes are found here, before anything is written.
    trained = load_trained(folder, request.restore_file, make_net, average_views, overrides)
    params = load_params(folder, overrides, trained)
    check_classes(folder, trained)
    data_dir = find_trained_data(folder, request.data_dir)
    loader = fetch_split(request.split, data_dir, params, trained, request.cache_dir)
    metrics = make_metrics([*params.metrics, params.best_metric], params.folder)
    of_epoch = f" (epoch {trained.epoch})" if trained.epoch else ""
    views = f", tta {trained.tta}" if trained.tta != "none" else ""
    request.say(f"weights  {trained.path}{of_epoch}, {trained.device}, fp32{views}\n{loader.description}")
    # Run the net over the split, and record a look at the test split before anybody sees its numbers.
    outputs = collect_outputs(trained, loader)
    values = measure(metrics, outputs.logits, outputs.labels)
    looks = count_look(folder, request, trained, loader, values) if request.split == "test" else None
    # Write metrics, tables and pictures.
    files = output_paths(folder, request.out, request.split, trained.name)
    shown = {name: f"{name} {value:.4f}" for name, value in values.items() if value is not None}
    best = shown.get(reference_name(params.best_metric), "")
    title = f"{request.split}: {best}, {loader.num_images} images"
    lines = write_evaluation(files["evaluation"], outputs, loader, title)
    write_json(files["metrics"], ({"epoch": trained.epoch} if trained.epoch else {}) | values)
    if "tensorboard" in params.observers and request.out is None:
        show_in_tensorboard(folder.path, files["evaluation"], request.split, trained.epoch or 0)
    # Print the table, the metrics, the looks and the paths.
    request.say(f"\n{class_table(lines, at_most=20)}\n\n{request.split}: {', '.join(shown.values())}")
    if looks:
        hint = ": choose by validation metrics, not by these" if looks > 3 else ""
        request.say(f"look {looks} at this test set{hint}")
    request.say("\n".join(f"{name:10} {path}" for name, path in files.items()))
    return {
        "split": request.split,
        "weights": str(trained.path),
        "epoch": trained.epoch,
        "metrics": values,
        "looks": looks,
        "files": {name: str(path) for name, path in files.items()},
    }


def fetch_split(split: str, data_dir: Path, params: Params, trained: Trained, cache_dir: Path | None) -> Loader:
    """The loader of the split, which gives each image once and as evaluation sees it."""
    from model.data_loader import fetch_dataloader

    if split == "train":  # the images that are trained with, without the augmentation of training
        params = params.replace(
            augment="none", mixup=0, cutmix=0, sampler="shuffle", accumulate=1, batch_size=params.bs_test
        )
    pinned = trained.pinned
    return fetch_dataloader([split], data_dir, params, device=trained.device, cache_dir=cache_dir, pinned=pinned)[split]


def count_look(folder: Folder, request: EvaluationRequest, trained: Trained, loader: Loader, values: JsonObject) -> int:
    """Record a look at the test split. Returns the number of looks so far."""
    from engine.use.evaluation import record_look

    look: JsonObject = {
        "time": now(),
        "weights": trained.kit["digest"],
        "restore_file": request.restore_file,
        "data": loader.fingerprint,
        "metrics": values,
    }
    return record_look(folder.path, look)


def check_classes(folder: Folder, trained: Trained) -> None:
    """UserError unless the weights have the classes that the folder froze at its first start."""
    frozen = folder.resolved().get("pinned", {}).get("classes", trained.classes)
    if frozen != trained.classes:
        raise UserError(
            f"{trained.path} was trained with {len(trained.classes)} classes ({', '.join(trained.classes[:5])}, ...), "
            f"{folder.path} with {len(frozen)} ({', '.join(frozen[:5])}, ...): give weights of this experiment"
        )


def output_paths(folder: Folder, out: Path | None, split: str, weights: str) -> dict[str, Path]:
    """metrics_test_best.json and evaluation/; for other splits and weights, names that say which."""
    suffix = ("" if split == "test" else f"_{split}") + ("" if weights == "best" else f"_{weights}")
    parent = out or folder.path
    parent.mkdir(parents=True, exist_ok=True)
    return {
        "metrics": parent / f"metrics_{split}_{weights}.json",
        "evaluation": parent / f"{EVALUATION}{suffix}",
    }


def main(argv: list[str]) -> int:
    args, overrides = make_parser().parse(argv)
    if not (args.model_dir or args.folder):
        raise UserError("which experiment? give --model_dir M")
    request = EvaluationRequest(
        split=parse_split(args.split),
        restore_file=args.restore_file,
        data_dir=args.data_dir,
        out=args.out,
        cache_dir=args.cache_dir,
        say=partial(print, file=sys.stderr if args.json else sys.stdout),
    )
    result = evaluate(Folder(args.model_dir or args.folder), request, overrides)
    if args.json:
        print(to_json(result), end="")
    return 0


if __name__ == "__main__":
    run_script(main)
