"""Draw the curves of many experiment folders into one figure.

    python plot_results.py --parent_dir experiments/learning_rate
    python plot_results.py experiments/resnet9 experiments/resnet18 --out compared.png

Training and validation loss and metric of every run, the best ones named by the parameters that differ.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.arguments import Parser
from engine.report import Row, differing, find_folders, label, read_rows
from engine.tables import make_table
from utils import UserError, run_script, to_json

FIGURE = "history_plots.png"


def make_parser() -> Parser:
    parser = Parser("plot_results.py", __doc__)
    add = parser.add_argument
    add("folders", nargs="*", metavar="FOLDER", help="experiment folders")
    add("--parent_dir", type=Path, metavar="P", help="every experiment folder in the tree under P")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"default: {FIGURE} in P, or in the folder that holds the others",
    )
    add(
        "--sort",
        metavar="METRIC",
        help="which runs are the best: a metric (its validation value) or any column",
    )
    add("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    return parser


def best_first(rows: Sequence[Row], sort: str | None) -> list[Row]:
    _, cells = make_table(rows, sort)
    by_name = {row.name: row for row in rows}
    return [by_name[line["folder"]] for line in cells]


def main(argv: list[str]) -> int:
    args, overrides = make_parser().parse(argv)
    if overrides:
        raise UserError(f"--{next(iter(overrides))}: a figure takes no parameters; see --help")
    if bool(args.parent_dir) == bool(args.folders):
        raise UserError("which folders? give --parent_dir P, or FOLDER FOLDER ...")
    folders = find_folders(args.parent_dir) if args.parent_dir else [Path(name) for name in args.folders]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such experiment folder")
    rows, problems = read_rows(dict.fromkeys(folders), args.parent_dir)
    rows = [row for row in rows if row.history]
    for name, remark in problems.items():
        print(f"{name}: {remark}", file=sys.stderr)
    if not rows:
        raise UserError(f"{args.parent_dir or ', '.join(args.folders)}: no folder with a history to draw")

    from engine.figures import save_comparison_figure

    rows = best_first(rows, args.sort)
    keys = differing(rows)
    common = args.parent_dir or Path(os.path.commonpath([folder.absolute() for folder in folders]))
    path = args.out or common / FIGURE
    metrics = list(dict.fromkeys(row.best_metric for row in rows))[:3]
    save_comparison_figure(path, [(label(row, keys), row.history) for row in rows], metrics)
    print(to_json({"figure": str(path), "runs": len(rows), "not_done": problems}) if args.json else path)
    return 0


if __name__ == "__main__":
    run_script(main)
