"""Put the results of many experiment folders into one table.

    python synthesize_results.py --parent_dir experiments/learning_rate
    python synthesize_results.py --parent_dir P --where "ps=0.5" --where "learning_rate<0.01" --sort loss --top 10
    python synthesize_results.py experiments/resnet9 experiments/resnet18 --diff
    python synthesize_results.py --parent_dir P --watch

Columns are the parameters that differ, the best epoch and its validation metrics, and what evaluate.py found,
with the number of looks at the test split. Runs that differ in seed or fold alone make one line: mean, 95 %
interval, n, and p against the best. With --parent_dir, results.md and results.csv are written there, unless
--where, --columns, --top or --equal_epochs ask for a view of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from folder.arguments import Parser
from report.rows import read_rows
from report.summary import Summary, read_summary, report_text, summarise, to_object, write_summary
from report.tables import MAX_ROWS, at_equal_epochs, choose_columns, printable, select, to_csv
from report.tree import find_folders
from utils import UserError, run_script, to_json

REFRESH = 2  # seconds


def make_parser() -> Parser:
    parser = Parser("synthesize_results.py", __doc__)
    add = parser.add_argument
    add("folders", nargs="*", metavar="FOLDER", help="experiment folders")
    add("--parent_dir", type=Path, metavar="P", help="every experiment folder in the tree under P")
    add("--sort", metavar="METRIC", help="a metric (its validation value) or any column; best first")
    add("--where", action="append", default=[], metavar="COND", help="NAME=VALUE, or != < > <= >=; all must hold")
    add("--columns", metavar="A,B,C", help="these columns, in this order")
    add("--top", type=int, metavar="N", help=f"at most N lines, 0 for all (default: {MAX_ROWS} of md and latex)")
    add("--equal_epochs", action="store_true", help="compare at the number of epochs that all runs have")
    add("--format", choices=["md", "csv", "latex"], default="md", help="what is printed (default: md)")
    add("--json", action="store_true", help="print one JSON object instead")
    add("--diff", action="store_true", help="what differs between FOLDERs: parameters, code, metrics; is it noise?")
    add("--watch", action="store_true", help=f"a table of what runs, every {REFRESH} s until Ctrl-C")
    add("--once", action="store_true", help="with --watch: print it once")
    return parser


def chosen_folders(args: argparse.Namespace) -> list[Path]:
    """The folders that the command line names. UserError when there are none."""
    if bool(args.parent_dir) == bool(args.folders):
        raise UserError("which folders? give --parent_dir P, or FOLDER FOLDER ...")
    folders = find_folders(args.parent_dir) if args.parent_dir else [Path(name) for name in args.folders]
    if args.folders:
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"{folder}: no such experiment folder")
    if not folders:
        raise UserError(f"{args.parent_dir}: no experiment folder in there (one holds a params.json)")
    return list(dict.fromkeys(folders))


def keep_watching(args: argparse.Namespace) -> int:
    """Draw the table of running folders in place until Ctrl-C; once when nobody looks on."""
    from report.watch import CLEAR, HOME, fit, watch

    text, _ = watch(chosen_folders(args), args.parent_dir)
    if args.once or not sys.stdout.isatty():
        print(text, end="")
        return 0
    start = CLEAR
    try:
        while True:
            print(start + fit(text), flush=True)
            time.sleep(REFRESH)
            start = HOME
            text, _ = watch(chosen_folders(args), args.parent_dir)
    except KeyboardInterrupt:
        return 130


def show_difference(args: argparse.Namespace, folders: Sequence[Path]) -> int:
    from report.diff import compare, compare_text

    found = compare(folders)
    if args.json:
        print_json(found)
    else:
        print(compare_text(found), end="")
    return 0


def print_json(value: Any) -> None:
    try:
        text = to_json(value)
    except ValueError:  # 1e999 in a damaged file is read as infinity, which JSON has not
        text = to_json(json.loads(json.dumps(value), parse_constant=str))
    print(printable(text), end="")


def view(args: argparse.Namespace, folders: Sequence[Path]) -> Summary:
    """The summary of the runs that --where leaves, at equal epochs when that was asked for."""
    rows, problems = read_rows(folders, args.parent_dir, keep_history=args.equal_epochs)
    rows, remark = select(rows, args.where), ""
    if args.equal_epochs:
        num, rows, odd = at_equal_epochs(rows)
        problems |= odd
        remark = f"All runs as they were after {num} epochs, the most that all of them have."
    summary = summarise(rows, {} if args.where else problems, args.sort, all_count=args.equal_epochs)
    summary.remark = remark
    if args.where and not rows:
        summary.remark = f"No run meets {' and '.join(args.where)}."
    return summary


def main(argv: list[str]) -> int:
    args, overrides = make_parser().parse(argv)
    if overrides:
        raise UserError(f"--{next(iter(overrides))}: a table takes no parameters; see --help")
    if args.top is not None and args.top < 0:
        raise UserError(f"--top: {args.top} given; a number of lines is expected, 0 for all")
    if args.watch:
        return keep_watching(args)
    folders = chosen_folders(args)
    if args.diff:
        return show_difference(args, folders)
    is_view = bool(args.where or args.columns or args.top is not None or args.equal_epochs)
    summary = view(args, folders) if is_view else read_summary(folders, args.parent_dir, args.sort)
    shown = choose_columns(summary.columns, args.columns) if args.columns and args.format == "csv" else summary.columns
    top = MAX_ROWS if args.top is None else args.top
    written = write_summary(args.parent_dir, summary) if args.parent_dir and not is_view else []
    if args.json:
        print_json(to_object(summary, args.top) | {"files": [str(path) for path in written]})
    elif args.format == "csv":
        print(printable(to_csv(shown, summary.cells[: args.top or None])), end="")
    else:
        print(report_text(summary, top, args.columns, args.format), end="")
    return 0


if __name__ == "__main__":
    run_script(main)
