"""Put the results of many experiment folders into one table.

    python synthesize_results.py --parent_dir experiments/learning_rate
    python synthesize_results.py --parent_dir P --where "ps=0.5" --where "learning_rate<0.01" --sort loss --top 10
    python synthesize_results.py experiments/resnet9 experiments/resnet18 --diff
    python synthesize_results.py --parent_dir P --watch

The columns are the parameters that differ, the best epoch and its validation metrics, the test metrics that
evaluate.py measured, and the number of looks at the test split. Runs that differ in seed or fold alone share a line:
mean, 95 % interval, n, and p against the best. With --parent_dir, results.md and results.csv are written there,
unless --where, --columns, --top or --equal_epochs restrict what is shown.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from folder.arguments import Parser
from report.formats import replace_surrogates, to_csv
from report.rows import read_rows
from report.select import at_equal_epochs, choose_columns, select_rows
from report.summary import MAX_LINES, Summary, format_summary, read_summary, summarise, summary_object, write_summary
from report.tables import Table
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
    add("--columns", metavar="A,B,C", help="only these columns, in this order")
    add("--top", type=int, metavar="N", help=f"at most N lines, 0 for all (default: {MAX_LINES} in md and latex)")
    add("--equal_epochs", action="store_true", help="compare all runs at the last epoch that all have reached")
    add("--format", choices=["md", "csv", "latex"], default="md", help="what is printed (default: md)")
    add("--json", action="store_true", help="print one JSON object instead")
    add("--diff", action="store_true", help="compare FOLDERs: parameters, code, metrics; and test for noise")
    add("--watch", action="store_true", help=f"a table of the running folders, every {REFRESH} s until Ctrl-C")
    add("--once", action="store_true", help="with --watch: print the table once")
    return parser


def choose_folders(parent: Path | None, names: Sequence[str]) -> list[Path]:
    """The experiment folders that the command line names. UserError when there are none."""
    if bool(parent) == bool(names):
        raise UserError("which folders? give --parent_dir P, or FOLDER FOLDER ...")
    folders = find_folders(parent) if parent else [Path(name) for name in names]
    if names:
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"{folder}: no such experiment folder")
    if not folders:
        raise UserError(f"{parent}: no experiment folder below it (an experiment folder holds a params.json)")
    return list(dict.fromkeys(folders))


def keep_watching(parent: Path | None, names: Sequence[str], is_once: bool) -> int:
    """Redraw the table of running folders until Ctrl-C; print it once when stdout is not a terminal."""
    from report.watch import CLEAR, HOME, fit_terminal, watch

    text, _ = watch(choose_folders(parent, names), parent)
    if is_once or not sys.stdout.isatty():
        print(text, end="")
        return 0
    start = CLEAR
    try:
        while True:
            print(start + fit_terminal(text), flush=True)
            time.sleep(REFRESH)
            start = HOME
            text, _ = watch(choose_folders(parent, names), parent)
    except KeyboardInterrupt:
        return 130


def print_difference(folders: Sequence[Path], is_json: bool) -> None:
    from report.diff import diff_experiments, format_diff

    difference = diff_experiments(folders)
    if is_json:
        print_json(difference.as_object())
    else:
        print(format_diff(difference), end="")


def print_json(value: object) -> None:
    try:
        text = to_json(value)
    except ValueError:  # 1e999 in a damaged file is read as infinity, which JSON does not have
        text = to_json(json.loads(json.dumps(value), parse_constant=str))
    print(replace_surrogates(text), end="")


def restricted_summary(
    folders: Sequence[Path], parent: Path | None, conditions: Sequence[str], equal_epochs: bool, sort: str | None
) -> Summary:
    """The summary of the runs that meet the conditions, all after the same number of epochs if asked for."""
    rows, problems = read_rows(folders, parent, keep_history=equal_epochs)
    rows = select_rows(rows, conditions)
    remark = ""
    if equal_epochs:
        num_epochs, rows, malformed = at_equal_epochs(rows)
        problems |= malformed
        remark = f"All runs are compared after {num_epochs} epochs, the most that all of them have reached."
    if conditions and not rows:
        remark = f"No run meets {' and '.join(conditions)}."
    summary = summarise(rows, {} if conditions else problems, sort, include_unfinished=equal_epochs)
    summary.remark = remark
    return summary


def print_summary(summary: Summary, args: argparse.Namespace, written: Sequence[Path]) -> None:
    if args.json:
        print_json(summary_object(summary, args.top) | {"files": [str(path) for path in written]})
    elif args.format == "csv":
        columns = choose_columns(summary.runs.columns, args.columns) if args.columns else summary.runs.columns
        print(replace_surrogates(to_csv(Table(columns, summary.runs.lines[: args.top or None]))), end="")
    else:
        top = MAX_LINES if args.top is None else args.top
        print(format_summary(summary, top, args.columns, args.format), end="")


def main(argv: list[str]) -> int:
    args, overrides = make_parser().parse(argv)
    if overrides:
        raise UserError(f"--{next(iter(overrides))}: a table takes no parameters; see --help")
    if args.top is not None and args.top < 0:
        raise UserError(f"--top: {args.top} given; a number of lines is expected, 0 for all")
    if args.watch:
        return keep_watching(args.parent_dir, args.folders, args.once)
    folders = choose_folders(args.parent_dir, args.folders)
    if args.diff:
        print_difference(folders, args.json)
        return 0
    is_restricted = bool(args.where or args.columns or args.top is not None or args.equal_epochs)
    if is_restricted:
        summary = restricted_summary(folders, args.parent_dir, args.where, args.equal_epochs, args.sort)
    else:
        summary = read_summary(folders, args.parent_dir, args.sort)
    written = write_summary(args.parent_dir, summary) if args.parent_dir and not is_restricted else []
    print_summary(summary, args, written)
    return 0


if __name__ == "__main__":
    run_script(main)
