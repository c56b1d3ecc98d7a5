"""Put the results of many experiment folders into one table.

    python synthesize_results.py --parent_dir experiments/learning_rate
    python synthesize_results.py experiments/resnet9 experiments/resnet18 --sort loss

Columns are the parameters that differ, the best epoch and its validation metrics, and what evaluate.py found,
with the number of looks at the test split. With --parent_dir, results.md and results.csv are written there.
"""

from __future__ import annotations

from pathlib import Path

from engine.arguments import Parser
from engine.report import find_folders, read_rows
from engine.tables import describe_problems, make_table, to_csv, to_markdown
from utils import UserError, run_script, to_json, write_atomic


def make_parser() -> Parser:
    parser = Parser("synthesize_results.py", __doc__)
    add = parser.add_argument
    add("folders", nargs="*", metavar="FOLDER", help="experiment folders")
    add("--parent_dir", type=Path, metavar="P", help="every experiment folder in the tree under P")
    add("--sort", metavar="METRIC", help="a metric (its validation value) or any column; best first")
    add("--format", choices=["md", "csv"], default="md", help="what is printed (default: md)")
    add("--json", action="store_true", help="print one JSON object instead")
    return parser


def main(argv: list[str]) -> int:
    args, overrides = make_parser().parse(argv)
    if overrides:
        raise UserError(f"--{next(iter(overrides))}: a table takes no parameters; see --help")
    if bool(args.parent_dir) == bool(args.folders):
        raise UserError("which folders? give --parent_dir P, or FOLDER FOLDER ...")
    folders = find_folders(args.parent_dir) if args.parent_dir else [Path(name) for name in args.folders]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such experiment folder")
    if not folders:
        raise UserError(f"{args.parent_dir}: no experiment folder in there (one holds a params.json)")
    rows, problems = read_rows(folders, args.parent_dir)
    columns, cells = make_table(rows, args.sort)
    table, problem_list = to_markdown(columns, cells) if rows else "", describe_problems(problems)
    report = "\n\n".join(part for part in (table, problem_list) if part) + "\n"
    written = {}
    if args.parent_dir:
        written = {"results.md": report, "results.csv": to_csv(columns, cells)}
        for name, text in written.items():
            write_atomic(args.parent_dir / name, text)
    if args.json:
        files = [str(args.parent_dir / name) for name in written]
        print(to_json({"rows": cells, "not_done": problems, "files": files}), end="")
    elif args.format == "csv":
        print(to_csv(columns, cells), end="")
    else:
        print(report, end="")
    return 0


if __name__ == "__main__":
    run_script(main)
