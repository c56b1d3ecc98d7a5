"""Train an experiment with many values of its parameters, one child folder for each.

    python search_hyperparams.py --data_dir data/cifar10 --parent_dir experiments/resnet18/learning_rate
    python search_hyperparams.py experiments/resnet18/learning_rate     # go on with what was interrupted

"hyper_search" in params.json of the parent folder names the values, "search" says how they are chosen. Killed at
any instant and started again, the same command finishes every value exactly once; half-trained children go on
where they were. Then results.md, results.csv, history_plots.png and report.html are written into the parent.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

from folder.arguments import Parser
from folder.folder import Folder
from folder.provenance import surroundings
from include import CODE, FOLDS
from params import deep_merge
from report.figures import warm_up
from search.engines.local import LocalEngine, serve, visible_gpus
from search.scheduler import Search, freeze_code, open_search
from utils import UserError, run_script, to_json, write_json

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from params import Params
    from search.engines.base import Engine


def make_parser() -> Parser:
    parser = Parser("search_hyperparams.py", __doc__)
    add = parser.add_argument
    add("folder", nargs="?", help="the parent folder (the same as --parent_dir)")
    add("--parent_dir", metavar="P", help="the parent folder, holding params.json with hyper_search")
    add("--data_dir", metavar="D", help="dataset folder; the parent remembers it")
    add("--engine", choices=["local", "ray", "slurm"], help="who runs the children (default: search.engine)")
    add("--parallel", type=int, metavar="N", help="so many children at a time (default: search.parallel, or the GPUs)")
    add("--dry_run", action="store_true", help="write the children, list them, and stop")
    add("--fail_fast", action="store_true", help="start no more children once one has failed")
    add("--accept", action="append", choices=["code"], help="go on with the code as it is now")
    add("--cache_dir", metavar="DIR", help="decoded images go there (default: .cache beside the data)")
    add("--scratch_dir", metavar="DIR", help="checkpoints and events of the children go there")
    add("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    add("--serve", action="store_true", help="be the pool process of a search, by the code in this folder")
    parser.epilog = "Any parameter can be changed by name, for all children: --num_epochs=3 --search.seeds=3"
    return parser


def make_engine(search: Search) -> Engine:
    """Who runs the children."""
    code = search.folder.path.resolve() / CODE
    if search.search.engine == "local":
        command = [sys.executable, str(code / "search_hyperparams.py"), "--serve"]
        return LocalEngine(command, search.folder.path, search.slots, visible_gpus())
    if search.search.engine == "slurm":
        from search.engines.slurm import SlurmEngine

        return SlurmEngine(code, search.folder.path, search.slots, search.search.slurm)
    from search.engines.ray import RayEngine

    return RayEngine(code, search.folder.path, search.slots, search.search.ray)


def serve_training() -> int:
    """The pool process: everything that training imports, imported before the first fork."""
    from importlib import import_module
    from pkgutil import resolve_name

    for name in ("torch", "torch._dynamo", "engine.session", "model.data_loader", "model.net", "model.metric",
                 "model.tta"):  # fmt: skip
        import_module(name)
    warm_up()
    surroundings()
    return serve(resolve_name("train:main"))


def deal_folds(params: Params, data_dir: Path, cache_dir: str | None) -> dict[str, Any] | None:
    """Which image is in which part, for all children; None without folds. UserError: too few images. Builds caches."""
    if not params.search.folds:
        return None
    from model.images.folds import fold_assignment

    return dict(fold_assignment(data_dir, params, params.search.folds, cache_dir))


def carry_out(search: Search, args: argparse.Namespace) -> None:
    """Train what is missing. A signal ends it with everything saved: the same command goes on."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    handlers = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    say = sys.stderr if args.json else sys.stdout
    engine = make_engine(search)
    state = "interrupted"
    Thread(target=warm_up).start()  # for the pictures at the end, while the first children begin
    try:
        for event in search.run(engine, args.fail_fast):
            done, num = (counts := search.counts())["done"], sum(counts.values())
            print(f"[{done}/{num}] {event.kind} {event.name} {event.text}".rstrip(), file=say, flush=True)
        state = "done"
    except SystemExit:
        print("saving: the same command goes on", file=sys.stderr)
        raise
    finally:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)  # one is enough: what trains is being saved
        engine.close()
        search.write_record(state)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def main(argv: list[str]) -> int:
    args, overrides = make_parser().parse(argv)
    if args.serve:
        return serve_training()
    if not (args.parent_dir or args.folder):
        raise UserError("which search? Give --parent_dir P, a folder with a params.json that has hyper_search")
    folder = Folder(args.parent_dir or args.folder)
    flags = {key: value for key in ("engine", "parallel") if (value := getattr(args, key)) is not None}
    overrides = deep_merge(overrides, {"search": flags} if flags else {})
    with folder.locked():
        deal = None if args.dry_run else partial(deal_folds, cache_dir=args.cache_dir)
        search = open_search(folder, args, overrides, len(visible_gpus()), deal)
        if args.dry_run:
            names = list(search.children.by_name)
            print(to_json({"children": names}).strip() if args.json else "\n".join([*names, f"{len(names)} children"]))
            return 0
        for key in ("cache_dir", "scratch_dir"):
            search.more += [f"--{key}", os.path.abspath(value)] if (value := getattr(args, key)) else []
        for remark in freeze_code(search, bool(args.accept)):
            print(remark, file=sys.stderr if args.json else sys.stdout)
        if search.assignment:
            write_json(folder.path / FOLDS, search.assignment)
        carry_out(search, args)
        from report.results import write_results

        written = write_results(folder.path)
        counts = search.counts()
    if args.json:
        print(to_json({"parent": str(folder.path), **counts, "files": list(map(str, written))}), end="")
    else:
        print((folder.path / "results.md").read_text(encoding="utf-8"), *written, sep="\n")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    run_script(main)
