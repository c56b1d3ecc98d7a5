"""Draw what many experiment folders have found, and write report.html.

    python plot_results.py --parent_dir experiments/learning_rate
    python plot_results.py experiments/resnet9 experiments/resnet18 --out compared.png

history_plots.png holds the curves of every run, parameters.png the metric against each parameter that differs,
importance.png how much each of them matters. report.html is a page to open from disk: one in the folder of all
runs, with sortable table and interactive curves, and one in each experiment folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from folder.arguments import Parser
from report.rows import read_rows
from report.tree import find_folders
from utils import UserError, run_script, to_json

FIGURE = "history_plots.png"


def make_parser() -> Parser:
    parser = Parser("plot_results.py", __doc__)
    add = parser.add_argument
    add("folders", nargs="*", metavar="FOLDER", help="experiment folders")
    add("--parent_dir", type=Path, metavar="P", help="every experiment folder in the tree under P")
    add("--out", type=Path, metavar="FILE", help="draw the curves into this file, and write nothing else")
    add(
        "--sort",
        metavar="METRIC",
        help="which runs are the best: a metric (its validation value) or any column",
    )
    add("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    return parser


def main(argv: list[str]) -> int:
    args, overrides = make_parser().parse(argv)
    if overrides:
        raise UserError(f"--{next(iter(overrides))}: a figure takes no parameters; see --help")
    if bool(args.parent_dir) == bool(args.folders):
        raise UserError("which folders? give --parent_dir P, or FOLDER FOLDER ...")
    folders = find_folders(args.parent_dir) if args.parent_dir else list(dict.fromkeys(map(Path, args.folders)))
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such experiment folder")
    if not args.parent_dir:
        folders = [Path(os.path.abspath(folder)) for folder in folders]
    into = args.parent_dir or Path(os.path.commonpath(folders))
    rows, problems = read_rows(folders, into)
    rows = [row for row in rows if row.history]
    for name, remark in problems.items():
        print(f"{name}: {remark}", file=sys.stderr)
    if not rows:
        raise UserError(f"{args.parent_dir or ', '.join(args.folders)}: no folder with a history to draw")
    if args.out:
        from report.plots import compare, save_curves

        save_curves(args.out, compare(rows, args.sort))
        written = [args.out]
    else:
        from report.results import write_pictures

        written, remarks = write_pictures(rows, problems, folders, into, args.sort)
        print(*remarks, sep="\n", end="\n" if remarks else "", file=sys.stderr)
    paths = [str(path) for path in written]
    result = {"figure": paths[0], "files": paths, "runs": len(rows), "not_done": problems}
    print(to_json(result) if args.json else "\n".join(paths), end="" if args.json else "\n")
    return 0


if __name__ == "__main__":
    run_script(main)
