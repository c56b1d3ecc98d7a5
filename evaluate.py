"""Measure a trained net on the test split, once you have chosen it.

    python evaluate.py --data_dir data/cifar10 --model_dir experiments/resnet18
    python evaluate.py --model_dir experiments/resnet18 --split valid --restore_file last

Writes metrics_test_best.json and evaluation/ into the experiment folder. Each look at the test split is
recorded, and tables show the number of looks: choose by the validation metrics.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from folder.arguments import Parser
from folder.folder import Folder
from folder.locate import find_trained_data, parse_split
from folder.provenance import MARKER, check_frozen_code, pick_code
from folder.trust import Consent
from utils import JsonObject, UserError, reference_name, run_script, to_json, write_json

if TYPE_CHECKING:  # torch is imported by the functions that use it: --help answers at once
    from engine.protocols import Loader
    from engine.use.evaluation import Computed
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
    add("--code", choices=["folder", "tree"], help="whose code computes (default: the folder's, if the tree's changed)")
    add("--trust", action="store_true", help="run the code that the folder brings, though it is not sealed as yours")
    add("--logits", type=Path, metavar="FILE", help=argparse.SUPPRESS)  # asked of a frozen copy: engine/use/frozen.py
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
    code: str  # whose code computes: tree or folder
    consent: Consent  # to code that is not sealed as this user's
    overrides: JsonObject  # the parameters of the command line

    def words(self, folder: Folder) -> list[str]:
        """The same request to a frozen copy, apart from parameters."""
        data_dir = find_trained_data(folder, self.data_dir)
        words = ["--model_dir", str(folder.path), "--data_dir", str(data_dir)]
        words += ["--split", self.split, "--restore_file", self.restore_file]
        return words + (["--cache_dir", str(self.cache_dir)] if self.cache_dir else [])


def evaluate(folder: Folder, request: EvaluationRequest) -> JsonObject:
    """Weights -> logits of every image -> metrics, the record of the look, tables and pictures."""
    from engine.use import looks
    from engine.use.evaluation import class_table, measure, output_paths, show_in_tensorboard, write_evaluation
    from engine.use.frozen import compute_logits
    from engine.use.inference import check_classes, find_trained, load_params
    from model.metric import make_metrics

    # What was trained, what is asked, and the look at a sealed test split, if there was one.
    say = request.consent.say
    weights = find_trained(folder, request.restore_file)
    check_classes(folder, weights)
    is_test = request.split == "test"
    look = looks.find_sealed_look(folder, weights) if is_test else None
    overrides = looks.recorded_overrides(folder, look, request.overrides)
    files = output_paths(folder.path, request.out, request.split, weights.name)
    result = {"split": request.split, "weights": str(weights.path), "epoch": weights.epoch}
    result |= {"files": {name: str(path) for name, path in files.items()}}
    if look and not request.data_dir and all(path.exists() for path in files.values()):
        say(looks.describe_recorded(look, files))
        return result | {"metrics": look["metrics"], "looks": 1, "code": look["code"]}
    # Build everything that the evaluation needs, and run the net over the split. Nothing has been written yet.
    params = load_params(folder, overrides, weights.kit["resize"], request.consent)
    metrics = make_metrics([*params.metrics, params.best_metric], params.folder)
    if request.code == "folder":
        computed = compute_logits(folder.path, request.words(folder), overrides)
        say(computed.description)
    else:
        computed = compute(folder, request, params, overrides)
    values = measure(metrics, computed.outputs.logits, computed.outputs.labels)
    # Record a look at the test split before anybody sees its numbers.
    num_looks = None
    if is_test:
        facts = {"restore_file": request.restore_file, "data": computed.fingerprint, "code": request.code}
        values, num_looks = looks.count_look(folder, weights, facts | {"metrics": values}, look, overrides)
    # Write metrics, tables and pictures.
    shown = {name: f"{name} {value:.4f}" for name, value in values.items() if value is not None}
    best = shown.get(reference_name(params.best_metric), "")
    title = f"{request.split}: {best}, {computed.num_images} images"
    lines = write_evaluation(files["evaluation"], computed, title)
    origin = {"weights": weights.kit["digest"], "data": computed.fingerprint, "code": request.code}
    write_json(files["evaluation"] / "origin.json", origin)
    write_json(files["metrics"], ({"epoch": weights.epoch} if weights.epoch else {}) | values)
    if "tensorboard" in params.observers and request.out is None:
        show_in_tensorboard(folder.path, files["evaluation"], request.split, weights.epoch or 0)
    # Print the table, the metrics, the looks and the paths.
    say(f"\n{class_table(lines, at_most=20)}\n\n{request.split}: {', '.join(shown.values())}")
    if num_looks:
        say(looks.describe_number(num_looks))
    say("\n".join(f"{name:10} {path}" for name, path in files.items()))
    return result | {"metrics": values, "looks": num_looks, "code": request.code}


def compute(folder: Folder, request: EvaluationRequest, params: Params, overrides: JsonObject) -> Computed:
    """The outputs of the net over the split, by the code of this tree."""
    from engine.use.evaluation import Computed, collect_outputs
    from engine.use.inference import load_trained
    from model.net import make_net
    from model.tta import average_views

    trained = load_trained(folder, request.restore_file, make_net, average_views, overrides, request.consent)
    loader = fetch_split(request, find_trained_data(folder, request.data_dir), params, trained)
    description = f"{trained.description}\n{loader.description}"
    request.consent.say(description)
    return Computed.of(collect_outputs(trained, loader), loader, description)


def fetch_split(request: EvaluationRequest, data_dir: Path, params: Params, trained: Trained) -> Loader:
    """The loader of the split, which gives each image once and as evaluation sees it."""
    from model.data_loader import fetch_dataloader

    split = request.split
    if split == "train":  # the images that are trained with, without the augmentation of training
        params = params.replace(
            augment="none", mixup=0, cutmix=0, sampler="shuffle", accumulate=1, batch_size=params.bs_test
        )
    place = {"device": trained.device, "cache_dir": request.cache_dir, "pinned": trained.pinned}
    return fetch_dataloader([split], data_dir, params, **place)[split]


def write_logits(folder: Folder, request: EvaluationRequest, file: Path) -> int:
    """In a frozen copy: compute, write the outputs to `file`, and nothing else. The caller records the look."""
    from engine.use.frozen import write_computed
    from engine.use.inference import find_trained, load_params

    if not os.environ.get(MARKER):
        raise UserError("--logits is what evaluate.py asks of a frozen copy; leave it out")
    weights = find_trained(folder, request.restore_file)
    params = load_params(folder, request.overrides, weights.kit["resize"], request.consent)
    write_computed(file, compute(folder, request, params, request.overrides))
    return 0


def main(argv: list[str]) -> int:
    args, overrides = make_parser().parse(argv)
    if not (args.model_dir or args.folder):
        raise UserError("which experiment? give --model_dir M")
    folder = Folder(args.model_dir or args.folder)
    say = partial(print, file=sys.stderr if args.json else sys.stdout, flush=True)
    consent = Consent(args.trust, ["python", "evaluate.py", *argv], say)
    fields = {key: getattr(args, key) for key in ("restore_file", "data_dir", "out", "cache_dir")}
    code = "tree" if args.logits else pick_code(folder, args.code, say)
    request = EvaluationRequest(parse_split(args.split), **fields, code=code, consent=consent, overrides=overrides)
    if args.logits:
        return write_logits(folder, request, args.logits)
    if code == "folder":
        from engine.use.frozen import knows_logits, run_instead

        check_frozen_code(folder.path, consent)
        if not knows_logits(folder.path):
            return run_instead(folder.path, "evaluate.py", argv)
    result = evaluate(folder, request)
    if args.json:
        print(to_json(result), end="")
    return 0


if __name__ == "__main__":
    run_script(main)
