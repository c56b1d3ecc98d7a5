"""Name the class of each image, with a trained net.

    python predict.py --model_dir experiments/resnet18 photo.jpg more_photos/
    python predict.py experiments/resnet18 "photos/*.jpg" --top 3 --csv predictions.csv
    find photos -newer yesterday | python predict.py experiments/resnet18 - --json

One row per image: path, label_1, prob_1, ..., error. A file that cannot be read gets a row with the reason. In Python:
`from predict import load; net = load("experiments/resnet18"); net("photo.jpg")` is {class: probability}.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine.use.image_words import find_images, names_nothing
from folder.arguments import Parser
from folder.folder import Folder
from folder.provenance import INFERENCE_CODE, changed_files, check_frozen_code, describe_other_code, pick_code
from folder.trust import Consent
from include import EXIT_USER, IMAGE_EXTENSIONS, PARAMS
from utils import JsonObject, UserError, run_script, to_json

if TYPE_CHECKING:  # torch is imported by the functions that use it: --help answers at once
    from engine.use.classifier import Classifier


def make_parser() -> Parser:
    parser = Parser("predict.py", __doc__)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE|FOLDER", help="image files, folders of them, patterns; -: paths from stdin")
    add(
        "--model_dir", metavar="M", help="the experiment folder, trained, or a weights file in it (default: first word)"
    )
    add("--restore_file", metavar="W", default="best", help="weights: best (default), last or a file")
    add(
        "--top", type=int, default=1, metavar="K", help="the K likeliest classes (default: 1; more than there are: all)"
    )
    add("--code", choices=["folder", "tree"], help="whose code computes (default: the folder's, if the tree's changed)")
    add("--trust", action="store_true", help="run the code that the folder brings, though it is not sealed as yours")
    add("--csv", metavar="FILE", help="write the table to this file, with all digits")
    add("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    parser.epilog = "--device=cpu|cuda|mps says where to compute (default: chosen for the machine)"
    return parser


def find_experiment(
    model_dir: str | None, restore_file: str, words: Sequence[str]
) -> tuple[Folder, str, Sequence[str]]:
    """(the experiment, its weights, the words that name images).

    Without --model_dir the first word is the experiment. It may be a weights file: M/weights/best.safetensors.
    """
    path, words = (Path(model_dir), words) if model_dir else (Path(words[0]), words[1:])
    if path.suffix == ".safetensors":
        return Folder(path.parent.parent), str(path), words
    if not model_dir and not (path / PARAMS).is_file():
        raise UserError(
            f"which experiment? {path} is not one: give --model_dir EXPERIMENT, or EXPERIMENT as the first word"
        )
    return Folder(path), restore_file, words


def load(
    folder: str | Path,
    restore_file: str = "best",
    *,
    code: Literal["tree"] | None = None,
    trust: bool = False,
    **parameters: str,
) -> Classifier:
    """The net of an experiment: net("photo.jpg") is {class: probability}, the likeliest class first; see Classifier.

    `restore_file`: best, last or a file. `trust`: run code of its own that the folder brings, as --trust does.
    `parameters`: device and tta. UserError when the folder is not trained, or the code that trained it has changed:
    code="tree" goes on with the code as it is now.
    """
    experiment = Folder(folder)
    changed = changed_files(experiment, {}, INFERENCE_CODE)
    if changed and code != "tree":
        call = f'load({str(folder)!r}, code="tree")'
        raise UserError(
            f"{', '.join(changed[:5])} changed since {folder} was trained: {call} uses the code as it is now"
        )
    check_overrides(parameters)
    if note := describe_other_code(experiment):
        print(note, file=sys.stderr)
    consent = Consent(trust, ["python", "predict.py", str(folder), "IMAGE"], partial(print, file=sys.stderr))
    return make_classifier(experiment, restore_file, parameters, consent)


def make_classifier(folder: Folder, restore_file: str, overrides: JsonObject, consent: Consent) -> Classifier:
    from engine.use.classifier import Classifier
    from engine.use.inference import find_trained, load_trained
    from model.images.prepare import Preparation
    from model.net import make_net
    from model.tta import average_views

    weights = find_trained(folder, restore_file, consent.say)
    trained = load_trained(folder, weights, make_net, average_views, overrides, consent)
    return Classifier(trained, Preparation(trained.kit, trained.device))


def check_overrides(overrides: Mapping[str, object]) -> None:
    if other := set(overrides) - {"device", "cuda", "tta"}:
        raise UserError(
            f"--{min(other)} belongs to the trained net and cannot be changed; possible here: --device, --tta"
        )


def answer(flags: argparse.Namespace, overrides: JsonObject, command: Sequence[str]) -> JsonObject:
    """{"weights", "failed", "rows"}, computed by this tree or, where it has changed, by the folder's frozen copy."""
    folder, restore_file, words = find_experiment(flags.model_dir, flags.restore_file, flags.images)
    if not words:
        raise UserError("which images? Give files, folders of them or patterns; - reads paths from stdin")
    paths = list(find_images(words))
    if all(map(names_nothing, paths)):
        raise UserError(
            f"{', '.join(words)}: no images found; give files, or folders with {' '.join(IMAGE_EXTENSIONS)}"
        )
    say = partial(print, file=sys.stderr)
    consent = Consent(flags.trust, command, say)
    if pick_code(folder, flags.code, say) == "folder":
        from engine.use.frozen import predict_rows
        from engine.use.inference import find_trained

        find_trained(folder, restore_file, say)
        check_frozen_code(folder.path, consent)
        own = ["--model_dir", str(folder.path), "--restore_file", restore_file, "--top", str(flags.top)]
        plain = all(os.path.lexists(word) for word in words)  # folders stay folders: a command line has an end
        return predict_rows(folder.path, own, words if plain else paths, overrides)
    from engine.use.prediction import list_rows

    net = make_classifier(folder, restore_file, overrides, consent)
    rows = list_rows(net, paths, flags.top)
    return {"weights": str(net.trained.path), "failed": sum(bool(row["error"]) for row in rows), "rows": rows}


def main(argv: list[str]) -> int:
    args, overrides = make_parser().parse(argv)
    check_overrides(overrides)
    if args.top < 1:
        raise UserError(f"--top: {args.top} given; at least 1")
    if args.csv and not Path(args.csv).absolute().parent.is_dir():
        raise UserError(f"--csv: {Path(args.csv).parent}: no such folder")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold anything

    result = answer(args, overrides, ["python", "predict.py", *argv])
    rows, failed = result["rows"], result["failed"]
    from engine.use.prediction import format_table, write_table

    if args.csv:
        write_table(Path(args.csv), rows)
    if args.json:
        print(to_json(result), end="")
    else:
        print(f"{len(rows)} rows in {args.csv}" if args.csv else format_table(rows))
    if failed:
        print(f"warning: {failed} of {len(rows)} images could not be read", file=sys.stderr)
    return EXIT_USER if failed == len(rows) else 0


if __name__ == "__main__":
    run_script(main)
