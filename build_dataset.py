"""Make a dataset folder {train,valid,test}/CLASS/IMAGE, and check one.

    python build_dataset.py --source digits --data_dir data/digits
    python build_dataset.py --source archive.tar.gz --data_dir data/cifar10
    python build_dataset.py --source photos/ --labels birds.csv --image_col file --label_col kind --data_dir data/birds
    python build_dataset.py --data_dir data/cifar10 --check

SRC is a folder (with or without splits), an archive (.tar, .tar.gz, .zip), `digits`, or a dataset that
torchvision downloads: cifar10, cifar100, mnist, fashion_mnist, kmnist, svhn, stl10, flowers102, ... A folder may hold
labels.csv (path, label, and perhaps split, group, weight) and groups.csv (path, group); train.py reads them, too.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from folder.arguments import Parser
from utils import JsonObject, UserError, command, run_script, to_json

if TYPE_CHECKING:
    from model.images.build.items import BuildOptions

MOST_SHOWN = 12  # classes per line


def make_parser() -> Parser:
    parser = Parser("build_dataset.py", __doc__)
    add = parser.add_argument
    add("--source", metavar="SRC", help="folder, archive, digits, or a torchvision name")
    add("--data_dir", metavar="D", required=True, type=Path, help="the dataset folder to make or to check")
    add("--valid_fraction", type=float, metavar="F", help="split this fraction of train off as valid, by content")
    add(
        "--test_fraction",
        type=float,
        metavar="F",
        help="set this fraction aside as test (default: 0.15, if SRC has no splits)",
    )
    add("--size", type=int, metavar="PX", help="reduce the short side of larger images to PX pixels")
    add("--labels", metavar="CSV", help="a table of images and their labels")
    add("--image_col", metavar="A", help="column of the image paths, relative to SRC")
    add("--label_col", metavar="B", help="column of the labels")
    add("--group_col", metavar="C", help="images with the same value stay in one split (a patient, a camera)")
    add("--copy", action="store_true", help="copy images that would otherwise be hard links to those of SRC")
    add("--check", action="store_true", help="decode every image; list those that are broken, unusual or duplicated")
    add("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    return parser


def main(argv: list[str]) -> int:
    args, others = make_parser().parse(argv)
    if others:
        raise UserError(f"build_dataset.py takes no parameters; {', '.join(others)} belong to train.py")
    if not args.source and not args.check:
        raise UserError("nothing to do: give --source SRC to build, or --check")
    if args.valid_fraction is not None and not 0 < args.valid_fraction < 1:
        raise UserError(f"--valid_fraction {args.valid_fraction}: possible are fractions between 0 and 1")
    if args.test_fraction is not None and not 0 <= args.test_fraction < 1:
        raise UserError(f"--test_fraction {args.test_fraction}: possible are fractions from 0 on, below 1")
    if not args.labels and any((args.image_col, args.label_col, args.group_col)):
        raise UserError(
            "--image_col, --label_col and --group_col are columns of the table that --labels names; give it"
        )
    if args.size is not None and not 8 <= args.size <= 10_000:
        raise UserError(f"--size {args.size}: possible are 8 to 10000 pixels")
    out = sys.stderr if args.json else sys.stdout
    result: JsonObject = {}
    if args.source:
        from model.images.build.items import BuildOptions

        names = ("valid_fraction", "test_fraction", "size", "labels", "image_col", "label_col", "group_col")
        options = BuildOptions(copy=args.copy or None, **{name: getattr(args, name) for name in names})
        result |= run_build(args.source, args.data_dir, options, out)
    if args.check:
        result |= run_check(args.data_dir, out)
    if args.json:
        print(to_json(result), end="")
    return 0


def run_build(source: str, data_dir: Path, options: "BuildOptions", out: TextIO) -> JsonObject:
    from model.images.build.dataset import build

    built = build(source, data_dir, options)
    for split, counts in built.counts.items():
        shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:MOST_SHOWN])
        more = f", ... ({len(counts)} classes)" if len(counts) > MOST_SHOWN else ""
        print(f"{split:6}{sum(counts.values()):8,} images: {shown}{more}", file=out)
    for remark in built.remarks:
        print(remark, file=out)
    train = command("python", "train.py", "--data_dir", data_dir, "--model_dir", "EXPERIMENT")
    print(f"train on it: {train}", file=out)
    return {"data_dir": str(data_dir), "counts": built.counts, "remarks": built.remarks}


def run_check(data_dir: Path, out: TextIO) -> JsonObject:
    from model.images.check import check, describe

    report = check(data_dir)
    for line in describe(report):
        print(line, file=out)
    return {"check": report}


if __name__ == "__main__":
    run_script(main)
