"""Write a trained net as a folder that works without this kit.

    python export.py --model_dir experiments/resnet18
    python export.py --model_dir experiments/resnet18 --int8
    python export.py --model_dir experiments/resnet18 --format torch --out ~/models/resnet18

model.onnx takes a decoded image of any size and gives probabilities; beside it: labels.txt, predict.py (needs
onnxruntime, numpy and Pillow alone), model_card.md, and parity.json (how it compares with the net).
"""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from folder.arguments import Parser
from folder.folder import Folder
from folder.locate import find_trained_data
from folder.provenance import check_frozen_code, pick_code
from folder.trust import Consent
from utils import JsonObject, UserError, run_script, to_json

if TYPE_CHECKING:  # torch is imported by the functions that use it: --help answers at once
    from engine.use.export import Exportable, Images
    from engine.use.inference import Trained

NEEDED = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "torch": (), "safetensors": ()}  # extras, by format


def make_parser() -> Parser:
    parser = Parser("export.py", __doc__)
    add = parser.add_argument
    add("folder", nargs="?", help="the experiment folder (the same as --model_dir)")
    add("--model_dir", metavar="M", help="the experiment folder, trained")
    add("--restore_file", metavar="W", default="best", help="weights: best (default), last or a file")
    add("--format", choices=list(NEEDED), default="onnx", help="onnx (default), torch (torch.export) or safetensors")
    add("--int8", action="store_true", help="8-bit integers, calibrated on training images; for onnx")
    add("--out", type=Path, metavar="DIR", help="the folder to write (default: export/ in the experiment)")
    add("--data_dir", metavar="D", help="dataset folder, to compare on (default: the one it was trained with)")
    add("--code", choices=["folder", "tree"], help="whose code exports (default: the folder's, if the tree's changed)")
    add("--trust", action="store_true", help="run the code that the folder brings, though it is not sealed as yours")
    add("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    return parser


def check_extras(form: str) -> None:
    """UserError naming the packages that are missing."""
    missing = [name for name in NEEDED[form] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format {form} needs packages that are not installed: pip install {' '.join(missing)}")


def list_images(trained: Trained, folder: Folder, data_dir: str | None, consent: Consent) -> list[Images] | None:
    """The images of train, and of valid; None where the dataset folder is not there and was not asked for."""
    from engine.use.export import Images
    from engine.use.inference import load_params
    from model.data_loader import fetch_dataloader
    from model.images.decode import read_image

    path = find_trained_data(folder, data_dir)
    if not path.is_dir() and not data_dir:
        return None
    params = load_params(folder, {}, trained.kit["resize"], consent).replace(mixup=0, cutmix=0)
    loaders = fetch_dataloader(["train", "valid"], path, params, pinned=trained.pinned)
    return [
        Images([loader.source.index.root / name for name in loader.paths], loader.labels.tolist(), read_image)
        for loader in loaders.values()
    ]


def prepare_export(folder: Folder, restore_file: str, data_dir: str | None, consent: Consent) -> Exportable:
    """The trained net on the CPU, and the images to check its export with."""
    from engine.use.export import Exportable
    from engine.use.inference import find_trained, load_trained
    from model.images.prepare import Preparation
    from model.net import make_net
    from model.tta import average_views

    weights = find_trained(folder, restore_file, consent.say)
    trained = load_trained(folder, weights, make_net, average_views, {"device": "cpu"}, consent)
    preparation = Preparation(trained.kit, trained.device)
    train, valid = list_images(trained, folder, data_dir, consent) or (None, None)
    return Exportable(
        trained=trained,
        base=preparation.base,
        to_base=preparation.base_image,
        to_batch=preparation.batch,
        train=train,
        valid=valid,
    )


def main(argv: list[str]) -> int:
    args, overrides = make_parser().parse(argv)
    if not (args.model_dir or args.folder):
        raise UserError("which experiment? Give --model_dir EXPERIMENT")
    if overrides:
        raise UserError(f"--{min(overrides)} belongs to the trained net and cannot be changed")
    if args.int8 and args.format != "onnx":
        raise UserError(f"--int8 is for --format onnx, not {args.format}")
    check_extras(args.format)
    folder = Folder(args.model_dir or args.folder)
    say = partial(print, file=sys.stderr if args.json else sys.stdout, flush=True)
    consent = Consent(args.trust, ["python", "export.py", *argv], say)
    if pick_code(folder, args.code, say) == "folder":
        from engine.use.frozen import run_instead

        check_frozen_code(folder.path, consent)
        return run_instead(folder.path, "export.py", argv)

    from engine.use.export import TOLERANCE, export

    given = prepare_export(folder, args.restore_file, args.data_dir, consent)
    if args.int8 and given.train is None:
        raise UserError("--int8 is calibrated on training images, which are not there: give --data_dir DATA")
    out = args.out or folder.path / "export"
    parity = export(given, folder, out, form=args.format, int8=args.int8)
    result: JsonObject = {"out": str(out), "files": sorted(path.name for path in out.iterdir()), **vars(parity)}
    lines = [f"{out}: {', '.join(result['files'])}", parity.describe()]
    if parity.images and not args.int8 and (parity.max_difference > TOLERANCE or parity.same_class < parity.images):
        lines.append(f"warning: more than the {TOLERANCE} that differences in resizing explain; see parity.json")
    print(*lines, sep="\n", file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(to_json(result), end="")
    return 0


if __name__ == "__main__":
    run_script(main)
