"""Name the class of each image, with a trained net.

    python predict.py --model_dir experiments/resnet18 photo.jpg more_photos/
    python predict.py --model_dir experiments/resnet18 photos/ --top 3 --csv predictions.csv

One row per image: path, label_1, prob_1, ..., error. A file that cannot be read gets a row with the reason.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from folder.arguments import Parser
from folder.folder import Folder
from folder.provenance import check_frozen_code, pick_code
from folder.trust import Consent
from include import EXIT_USER, IMAGE_EXTENSIONS
from utils import JsonObject, UserError, run_script, to_json

if TYPE_CHECKING:  # torch is imported by the functions that use it: --help answers at once
    import numpy as np
    from torch import Tensor

    from engine.use.inference import Trained

BATCH = 64  # images that go through the net at once
Row = dict[str, "str | float | None"]


def make_parser() -> Parser:
    parser = Parser("predict.py", __doc__)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE|FOLDER", help="image files, and folders of them")
    add("--model_dir", metavar="M", required=True, help="the experiment folder, trained")
    add("--restore_file", metavar="W", default="best", help="weights: best (default), last or a file")
    add("--top", type=int, default=1, metavar="K", help="the K likeliest classes (default: 1)")
    add("--code", choices=["folder", "tree"], help="whose code computes (default: the folder's, if the tree's changed)")
    add("--trust", action="store_true", help="run the code that the folder brings, though it is not sealed as yours")
    add("--csv", metavar="FILE", help="write the table to this file, with all digits")
    add("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    parser.epilog = "--device=cpu|cuda|mps says where to compute (default: chosen for the machine)"
    return parser


def find_images(names: Sequence[str]) -> Iterator[str]:
    """The given files, and every image below the given folders, in order."""
    for name in names:
        if not os.path.isdir(name):
            yield name
            continue
        for current, folders, files in os.walk(name):
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            shown = [file for file in sorted(files) if not file.startswith(".")]
            yield from (os.path.join(current, file) for file in shown if file.lower().endswith(IMAGE_EXTENSIONS))


def read_base_image(path: str, kit: JsonObject) -> np.ndarray | str:
    """(S, S, 3) uint8 as the data loader makes it, or the reason why the file cannot be read."""
    from model.data_loader import base_size
    from model.images.decode import ImageError, base_image, read_image

    try:
        return base_image(read_image(path), base_size(kit["im_sz"]), kit["resize"])
    except ImageError as error:
        return str(error).removeprefix(f"{path}: ")


def predict(trained: Trained, paths: Sequence[str], top: int) -> Iterator[Row]:
    """One row per path: path, label_1, prob_1, ..., error."""
    import numpy as np
    import torch

    from model.pixels.normalise import Normalise

    pinned = trained.pinned
    normalise = Normalise(pinned["im_sz"], pinned["mean"], pinned["std"], trained.device)

    def probabilities(images: list[np.ndarray]) -> Tensor:
        """(N, K) on the CPU."""
        return trained(normalise(torch.from_numpy(np.stack(images)).to(trained.device))).softmax(dim=1)

    with ThreadPoolExecutor(4) as pool:  # files are read and resized while others are decoded
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            read = list(pool.map(lambda path: read_base_image(path, trained.kit), batch))
            images = [image for image in read if not isinstance(image, str)]
            of_images = iter(probabilities(images) if images else ())  # (K,) of each image
            for path, image in zip(batch, read, strict=True):
                if isinstance(image, str):
                    yield make_row(path, [], top, error=image)
                else:
                    values, numbers = next(of_images).topk(top)
                    names = [trained.classes[number] for number in numbers.tolist()]
                    yield make_row(path, list(zip(names, values.tolist(), strict=True)), top)


def make_row(path: str, likeliest: Sequence[tuple[str, float]], top: int, error: str = "") -> Row:
    """The row of an image: its `top` likeliest classes and their probabilities, or the reason why it has none."""
    row: Row = {"path": path}
    for rank in range(top):
        row[f"label_{rank + 1}"], row[f"prob_{rank + 1}"] = likeliest[rank] if likeliest else (None, None)
    return row | {"error": error}


def format_table(rows: Sequence[Row]) -> str:
    """The table for people: probabilities with four decimals, an error column only when there are errors."""
    from tabulate import tabulate

    columns = [column for column in rows[0] if column != "error" or any(row["error"] for row in rows)]
    cells = [[f"{row[c]:.4f}" if isinstance(row[c], float) else row[c] or "" for c in columns] for row in rows]
    return tabulate(cells, columns, tablefmt="plain", disable_numparse=True)


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """The table as CSV, with all digits."""
    from engine.use.evaluation import write_csv

    def exact(value: str | float | None) -> str | float | None:
        return f"{value:.9g}" if isinstance(value, float) else value

    write_csv(path, list(rows[0]), [[exact(value) for value in row.values()] for row in rows])


def name_classes(
    flags: argparse.Namespace, overrides: JsonObject, paths: Sequence[str], command: Sequence[str]
) -> JsonObject:
    """{"weights", "failed", "rows"}, computed by this tree or, where it has changed, by the folder's frozen copy."""
    say = partial(print, file=sys.stderr)
    consent = Consent(flags.trust, command, say)
    folder = Folder(flags.model_dir)
    if pick_code(folder, flags.code, say) == "folder":
        from engine.use.frozen import predict_rows

        check_frozen_code(folder.path, consent)
        words = ["--model_dir", flags.model_dir, "--restore_file", flags.restore_file, "--top", str(flags.top)]
        return predict_rows(folder.path, words, flags.images, overrides)
    from engine.use.inference import load_trained
    from model.net import make_net
    from model.tta import average_views

    trained = load_trained(folder, flags.restore_file, make_net, average_views, overrides, consent)
    rows = list(predict(trained, paths, min(flags.top, len(trained.classes))))
    return {"weights": str(trained.path), "failed": sum(bool(row["error"]) for row in rows), "rows": rows}


def main(argv: list[str]) -> int:
    args, overrides = make_parser().parse(argv)
    if other := set(overrides) - {"device", "cuda", "tta"}:
        raise UserError(
            f"--{min(other)} belongs to the trained net and cannot be changed; possible here: --device, --tta"
        )
    if args.top < 1:
        raise UserError(f"--top: {args.top} given; at least 1")
    paths = list(find_images(args.images))
    if not paths:
        raise UserError(
            f"{', '.join(args.images)}: no images found; give files, or folders with {' '.join(IMAGE_EXTENSIONS)}"
        )
    if args.csv and not Path(args.csv).absolute().parent.is_dir():
        raise UserError(f"--csv: {Path(args.csv).parent}: no such folder")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold anything

    answer = name_classes(args, overrides, paths, ["python", "predict.py", *argv])
    rows = answer["rows"]
    failed = answer["failed"]
    if args.csv:
        write_table(Path(args.csv), rows)
    if args.json:
        print(to_json(answer), end="")
    else:
        print(f"{len(rows)} rows in {args.csv}" if args.csv else format_table(rows))
    if failed:
        print(f"warning: {failed} of {len(rows)} images could not be read", file=sys.stderr)
    return EXIT_USER if failed == len(rows) else 0


if __name__ == "__main__":
    run_script(main)
