"""Measure a trained net on the test split, once you have chosen it.

    python evaluate.py --data_dir data/cifar10 --model_dir experiments/resnet18
    python evaluate.py --model_dir experiments/resnet18 --split valid --restore_file last

Writes metrics_test_best.json and evaluation/ into the experiment folder. Each look at the test split is
recorded, and tables show how many there were: choose by the validation metrics.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from folder.arguments import Parser
from folder.folder import Folder, now
from folder.locate import find_trained_data
from include import EVALUATION, SPLIT_SYNONYMS, SPLITS
from utils import UserError, nearest, reference_name, run_script, to_json, write_json

if TYPE_CHECKING:  # torch is imported by the functions that use it: --help answers at once
    import argparse

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
    parser.epilog = 'What does not change the net can be set: --bs_test=64 --device=cpu --metrics=\'["f1", "auc"]\''
    return parser


def fetch(split: str, data_dir: Path, params: Params, trained: Trained, cache_dir: Path | None) -> Any:
    """The loader of the split, each image once and as evaluation sees it."""
    from model.data_loader import fetch_dataloader

    if split == "train":  # only the images that are trained with, without what happens to them in training
        params = params.replace(augment="none", mixup=0, cutmix=0, sampler="shuffle", accumulate=1,
                                batch_size=params.bs_test)  # fmt: skip
    loaders = fetch_dataloader(
        [split], data_dir, params, device=trained.device, cache_dir=cache_dir, pinned=trained.pinned
    )
    return loaders[split]


def evaluate(folder: Folder, args: argparse.Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    """Weights -> logits of every image -> metrics, the record of the look, tables and pictures."""
    from engine.use.evaluation import class_table, collect_outputs, measure, record_look, write_evaluation
    from engine.use.inference import load_trained, parameters
    from model.metric import make_metrics
    from model.net import make_net
    from model.tta import average_views

    split = str(SPLIT_SYNONYMS.get(args.split, args.split))
    if split not in SPLITS:
        raise UserError(f"--split: unknown split {split!r}; {nearest(split, SPLITS)}")
    say = partial(print, file=sys.stderr if args.json else sys.stdout)
    trained = load_trained(folder, args.restore_file, make_net, average_views, overrides)
    params = parameters(folder, overrides, trained)
    check_classes(folder, trained)
    loader = fetch(split, find_trained_data(folder, args.data_dir), params, trained, args.cache_dir)
    metrics = make_metrics([*params.metrics, params.best_metric], params.folder)
    of_epoch = f" (epoch {trained.epoch})" if trained.epoch else ""
    views = f", tta {trained.tta}" if trained.tta != "none" else ""
    say(f"weights  {trained.path}{of_epoch}, {trained.device}, fp32{views}\n{loader.description}")

    outputs = collect_outputs(trained, loader)
    values = measure(metrics, outputs.logits, outputs.labels)
    files = output_paths(folder, args.out, split, trained.which)
    looks = None
    if split == "test":  # recorded before it is seen
        look = {"time": now(), "weights": trained.kit["digest"], "restore_file": args.restore_file,
                "data": loader.fingerprint, "metrics": values}  # fmt: skip
        looks = record_look(folder.path, look)
    shown = {name: f"{name} {value:.4f}" for name, value in values.items() if value is not None}
    chosen_by = shown.get(reference_name(params.best_metric), "")
    title = f"{split}: {chosen_by}, {loader.num_images} images"
    lines = write_evaluation(files["evaluation"], outputs, loader, title)
    write_json(files["metrics"], ({"epoch": trained.epoch} if trained.epoch else {}) | values)
    if "tensorboard" in params.observers and args.out is None:
        from engine.use.evaluation import show_in_tensorboard

        show_in_tensorboard(folder.path, files["evaluation"], split, trained.epoch or 0)

    say(f"\n{class_table(lines, at_most=20)}\n\n{split}: {', '.join(shown.values())}")
    if looks:
        say(f"look {looks} at this test set" + (": choose by validation metrics, not by these" if looks > 3 else ""))
    say("\n".join(f"{name:10} {path}" for name, path in files.items()))
    said = {"split": split, "weights": str(trained.path), "epoch": trained.epoch, "metrics": values}
    return said | {"looks": looks, "files": {name: str(path) for name, path in files.items()}}


def check_classes(folder: Folder, trained: Trained) -> None:
    """The weights' class list must be the one that the folder froze at its first start."""
    frozen = folder.resolved().get("pinned", {}).get("classes", trained.classes)
    if frozen != trained.classes:
        raise UserError(
            f"{trained.path} knows {len(trained.classes)} classes ({', '.join(trained.classes[:5])}, ...), "
            f"{folder.path} others ({', '.join(frozen[:5])}, ...): these weights are of another experiment"
        )


def output_paths(folder: Folder, out: Path | None, split: str, which: str) -> dict[str, Path]:
    """metrics_test_best.json and evaluation/; other splits and weights have their own names."""
    suffix = ("" if split == "test" else f"_{split}") + ("" if which == "best" else f"_{which}")
    parent = out or folder.path
    parent.mkdir(parents=True, exist_ok=True)
    return {
        "metrics": parent / f"metrics_{split}_{which}.json",
        "evaluation": parent / f"{EVALUATION}{suffix}",
    }


def main(argv: list[str]) -> int:
    args, overrides = make_parser().parse(argv)
    if not (args.model_dir or args.folder):
        raise UserError("which experiment? give --model_dir M")
    result = evaluate(Folder(args.model_dir or args.folder), args, overrides)
    if args.json:
        print(to_json(result), end="")
    return 0


if __name__ == "__main__":
    run_script(main)
