"""Draw figures of many experiment folders, and write report.html.

    python plot_results.py --parent_dir experiments/learning_rate
    python plot_results.py experiments/resnet9 experiments/resnet18 --out compared.png

history_plots.png shows the curves of every run, parameters.png the metric against each parameter that differs,
importance.png how much each of them matters. report.html is a page that opens from disk: one in the folder that holds
the runs, with a sortable table and interactive curves, and one in each experiment folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
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
    add("--out", type=Path, metavar="FILE", help="draw only the curves, into this file")
    add("--sort", metavar="METRIC", help="order of the runs: a metric (its validation value) or any column")
    add("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    return parser


def choose_folders(parent: Path | None, names: Sequence[str]) -> tuple[list[Path], Path]:
    """(the experiment folders that the command line names, the folder that holds them all). UserError without any."""
    if bool(parent) == bool(names):
        raise UserError("which folders? give --parent_dir P, or FOLDER FOLDER ...")
    folders = find_folders(parent) if parent else list(dict.fromkeys(map(Path, names)))
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such experiment folder")
    if parent:
        return folders, parent
    folders = [Path(os.path.abspath(folder)) for folder in folders]
    return folders, Path(os.path.commonpath(folders))


def main(argv: list[str]) -> int:
    args, overrides = make_parser().parse(argv)
    if overrides:
        raise UserError(f"--{next(iter(overrides))}: a figure takes no parameters; see --help")
    folders, target = choose_folders(args.parent_dir, args.folders)
    rows, problems = read_rows(folders, target)
    for name, remark in problems.items():
        print(f"{name}: {remark}", file=sys.stderr)
    if not rows:
        raise UserError(f"{args.parent_dir or ', '.join(args.folders)}: no folder with results to draw")
    if args.out and not any(row.history for row in rows):
        raise UserError(f"--out {args.out}: no folder with a history to draw; without --out, what there is is drawn")
    if args.out:
        from report.plots.curves import save_curves
        from report.plots.ranking import rank_runs

        save_curves(args.out, rank_runs(rows, args.sort))
        written = [args.out]
    else:
        from report.write_results import write_figures_and_pages

        written, remarks = write_figures_and_pages(rows, problems, folders, target, args.sort)
        print(*remarks, sep="\n", end="\n" if remarks else "", file=sys.stderr)
    paths = [str(path) for path in written]
    result = {"figure": paths[0], "files": paths, "runs": len(rows), "not_done": problems}
    print(to_json(result) if args.json else "\n".join(paths), end="" if args.json else "\n")
    return 0


if __name__ == "__main__":
    run_script(main)
