"""Measure a trained net on the test split, once you have chosen it.

    python evaluate.py --data_dir data/cifar10 --model_dir experiments/resnet18
    python evaluate.py --model_dir experiments/resnet18 --split valid --restore_file last

Writes metrics_test_best.json and evaluation/ into the experiment folder. Each look at the test split is
recorded, and tables show the number of looks: choose by the validation metrics.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.use.request import EvaluationRequest, evaluate_parser
from folder.folder import Folder
from folder.locate import find_present_data, find_trained_data, parse_split
from folder.provenance import MARKER, check_frozen_code, pick_code
from folder.trust import Consent
from utils import JsonObject, UserError, reference_name, run_script, to_json, write_json

if TYPE_CHECKING:  # torch is imported by the functions that use it: --help answers at once
    from engine.protocols import Loader
    from engine.use.evaluation import Computed
    from engine.use.inference import Weights
    from params import Params


def evaluate(folder: Folder, request: EvaluationRequest) -> JsonObject:
    """Weights -> logits of every image -> metrics, the record of the look, tables and pictures."""
    from engine.use import looks, other_data
    from engine.use.evaluation import class_table, measure, output_paths, show_in_tensorboard, write_evaluation
    from engine.use.frozen import compute_logits
    from engine.use.inference import check_classes, check_unchanged, find_trained, load_params
    from model.metric import make_metrics

    # What was trained, what is asked, and the look at a sealed test split, if there was one.
    say = request.consent.say
    weights = find_trained(folder, request.restore_file, say)
    check_classes(folder, weights)
    is_test = request.split == "test"
    look = looks.find_sealed_look(folder, weights) if is_test else None
    overrides = looks.recorded_overrides(folder, look, request.overrides)
    files = output_paths(folder.path, request.out, request.split, weights.name)
    result = {"split": request.split, "weights": str(weights.path), "epoch": weights.epoch}
    if look and not request.data_dir and all(path.exists() for path in files.values()):
        say(looks.describe_recorded(look, files))
        return result | {"files": name_files(files), "metrics": look["metrics"], "looks": 1, "code": look["code"]}
    # Build everything that the evaluation needs, and run the net over the split. Nothing has been written yet.
    params = load_params(folder, overrides, weights.kit["resize"], request.consent)
    metrics = make_metrics([*params.metrics, params.best_metric], params.folder)
    if request.code == "folder":
        computed = compute_logits(folder.path, request.words(folder, request.split), overrides)
        check_unchanged(weights)
        say(computed.description)
    else:
        computed = compute(folder, request, weights, params, overrides)
    # Numbers of other data than that of the training are kept apart; no sealed test split is looked at with it.
    data_dir = find_trained_data(folder, request.data_dir)
    is_other = not look and is_other_data(folder, request, params, computed)
    if is_other:
        other_data.check_seal(folder, data_dir)
        say(other_data.describe(folder.path, data_dir, request.split))
        place = request.out or other_data.place_for(folder.path, data_dir, computed.fingerprint)
        files = output_paths(folder.path, place, request.split, weights.name)
    values = measure(metrics, computed.outputs.logits, computed.outputs.labels)
    # Record a look at the test split before anybody sees its numbers.
    num_looks = None
    origin: JsonObject = {"data": computed.fingerprint, "code": request.code}
    origin |= {"other_data": str(data_dir.absolute())} if is_other else {}
    if is_test:
        facts = {"restore_file": request.restore_file, **origin, "metrics": values}
        values, num_looks = looks.count_look(folder, weights, facts, look, overrides)
    # Write metrics, tables and pictures.
    shown = {name: f"{name} {value:.4f}" for name, value in values.items() if value is not None}
    best = shown.get(reference_name(params.best_metric), "")
    lines = write_evaluation(files["evaluation"], computed, f"{request.split}: {best}, {computed.num_images} images")
    write_json(files["evaluation"] / "origin.json", {"weights": weights.kit["digest"], **origin})
    write_json(files["metrics"], ({"epoch": weights.epoch} if weights.epoch else {}) | values)
    if "tensorboard" in params.observers and request.out is None and not is_other:
        show_in_tensorboard(folder.path, files["evaluation"], request.split, weights.epoch or 0)
    # Print the table, the metrics, the looks and the paths.
    say(f"\n{class_table(lines, at_most=20)}\n\n{request.split}: {', '.join(shown.values())}")
    if is_test:
        say(looks.describe_number(num_looks, is_other))
    say("\n".join(f"{name:10} {path}" for name, path in files.items()))
    return result | {"files": name_files(files), "metrics": values, "looks": num_looks, "code": request.code}


def name_files(files: dict[str, Path]) -> JsonObject:
    return {name: str(path) for name, path in files.items()}


def compute(
    folder: Folder, request: EvaluationRequest, weights: Weights, params: Params, overrides: JsonObject
) -> Computed:
    """The outputs of the net over the split, by the code of this tree."""
    from engine.use.evaluation import Computed, collect_outputs
    from engine.use.inference import load_trained
    from model.net import make_net
    from model.tta import average_views

    trained = load_trained(folder, weights, make_net, average_views, overrides, request.consent)
    place = {"device": trained.device, "cache_dir": request.cache_dir, "pinned": trained.pinned}
    loader = fetch_split(request.split, find_present_data(folder, request.data_dir), params, place)
    description = f"{trained.description}\n{loader.description}"
    request.consent.say(description)
    return Computed.of(collect_outputs(trained, loader), loader, description)


def fetch_split(split: str, data_dir: Path, params: Params, place: JsonObject) -> Loader:
    """The loader of the split, which gives each image once and as evaluation sees it."""
    from model.data_loader import fetch_dataloader

    if split == "train":  # the images that are trained with, without the augmentation of training
        params = params.replace(
            augment="none", mixup=0, cutmix=0, sampler="shuffle", accumulate=1, batch_size=params.bs_test
        )
    return fetch_dataloader([split], data_dir, params, **place)[split]


def is_other_data(folder: Folder, request: EvaluationRequest, params: Params, computed: Computed | None) -> bool:
    """True when the dataset is not the one of the training, by the content of its images."""
    from engine.use.other_data import is_trained_data

    data_dir = find_trained_data(folder, request.data_dir)
    place = {"cache_dir": request.cache_dir, "pinned": folder.resolved()["pinned"]}
    own = params if params.cache == "jpeg" else params.replace(cache="off")  # the digests of the images are enough

    def fingerprint(split: str) -> str:
        if computed and split == request.split:
            return computed.fingerprint
        return fetch_split(split, data_dir, own, place).fingerprint

    return not is_trained_data(folder, request, fingerprint)


def refuse_other_data(folder: Folder, request: EvaluationRequest) -> None:
    """UserError for other data: a frozen copy of 0.1.0 would write its numbers as the folder's own."""
    from engine.use.inference import load_params

    params = load_params(folder, request.overrides, folder.resolved()["resize"], request.consent)
    if is_other_data(folder, request, params, None):
        raise UserError(
            f"{folder.path} was trained with other data, and by 0.1.0: give --code tree to measure this data"
        )


def write_logits(folder: Folder, request: EvaluationRequest, file: Path) -> int:
    """In a frozen copy: compute, write the outputs to `file`, and nothing else. The caller records the look."""
    from engine.use.frozen import write_computed
    from engine.use.inference import find_trained, load_params

    if not os.environ.get(MARKER):
        raise UserError("--logits is what evaluate.py asks of a frozen copy; leave it out")
    weights = find_trained(folder, request.restore_file)
    params = load_params(folder, request.overrides, weights.kit["resize"], request.consent)
    write_computed(file, compute(folder, request, weights, params, request.overrides))
    return 0


def main(argv: list[str]) -> int:
    args, overrides = evaluate_parser(__doc__).parse(argv)
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
            refuse_other_data(folder, request)
            return run_instead(folder.path, "evaluate.py", argv)
    result = evaluate(folder, request)
    if args.json:
        print(to_json(result), end="")
    return 0


if __name__ == "__main__":
    run_script(main)
