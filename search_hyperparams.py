"""Train an experiment with many values of its parameters, one child folder for each.

    python search_hyperparams.py --data_dir data/cifar10 --parent_dir experiments/resnet18/learning_rate
    python search_hyperparams.py experiments/resnet18/learning_rate     # go on with what was interrupted

In params.json of the parent folder "hyper_search" names the values, and "search" says how they are chosen. When the
search is killed at any instant and started again, the same command finishes every value exactly once; half-trained
children continue where they were. At the end it writes results.md, results.csv, history_plots.png and report.html
into the parent folder.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from folder.arguments import Parser
from folder.folder import Folder
from folder.manifest import seal_without_id
from folder.provenance import surroundings
from folder.trust import Consent
from include import CODE, FOLDS, META
from params import deep_merge
from report.figures import warm_up
from search.engines.local import serve
from search.engines.registry import ENGINES
from search.opening import Assignment, freeze_code, open_search
from utils import UserError, run_script, to_json, write_json

if TYPE_CHECKING:
    from types import FrameType

    from params import Params
    from search.scheduler import Scheduler

WORKER = "train:main"  # what the processes of a search run
WORKER_MODULES = ["torch", "torch._dynamo", "engine.session", "model.data_loader", "model.net", "model.metric"]
WORKER_MODULES += ["model.tta"]


def make_parser() -> Parser:
    parser = Parser("search_hyperparams.py", __doc__)
    add = parser.add_argument
    add("folder", nargs="?", help="the parent folder (the same as --parent_dir)")
    add("--parent_dir", metavar="P", help="the parent folder, holding params.json with hyper_search")
    add("--data_dir", metavar="D", help="dataset folder; the parent remembers it")
    add("--engine", choices=["local", "ray", "slurm"], help="where the children run (default: search.engine)")
    add("--parallel", type=int, metavar="N", help="children at a time (default: search.parallel, or one per GPU)")
    add("--dry_run", action="store_true", help="write the children, list them, and stop")
    add("--fail_fast", action="store_true", help="start no more children once one has failed")
    add("--accept", action="append", choices=["code"], help="continue with the current code")
    add("--trust", action="store_true", help="run the code that this search froze, though it is not sealed as yours")
    add("--cache_dir", metavar="DIR", help="folder for decoded images (default: .cache beside the data)")
    add("--scratch_dir", metavar="DIR", help="folder for checkpoints and events of the children")
    add("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    add("--serve", action="store_true", help=argparse.SUPPRESS)  # a search starts its pool process with it
    parser.epilog = "Any parameter can be changed by name, for all children: --num_epochs=3 --search.seeds=3"
    return parser


def serve_training() -> int:
    """The pool process: import everything that training needs, before the first fork, and serve."""
    from importlib import import_module
    from pkgutil import resolve_name

    for name in WORKER_MODULES:
        import_module(name)
    warm_up()
    surroundings()
    return serve(resolve_name(WORKER))


def look_at_data(params: Params, data_dir: Path, cache_dir: str | None, folds: bool) -> Assignment | None:
    """The fold of each image, the same for all children; None without folds. Builds their caches.

    UserError for what every child would refuse: no classes, too few images. `folds`: False leaves them out.
    """
    from model.images.image_folder import check_listing

    if params.dataset == "image_folder" and not {"dataset", "n_clas"} & params.hyper_search.keys():
        check_listing(data_dir, params)
    check_same_data(Path(params.folder), data_dir, cache_dir)
    if not (folds and params.search.folds):
        return None
    from model.images.folds import fold_assignment

    return dict(fold_assignment(data_dir, params, params.search.folds, cache_dir))


def check_same_data(parent: Path, data_dir: Path, cache_dir: str | None) -> None:
    """UserError when children have begun with other data than `data_dir` holds. A moved or copied dataset is the same.

    Data in the place where they found it is compared by each child that continues.
    """
    for path in sorted(parent.glob(f"*/{META}")):
        child = Folder(path.parent.parent)
        place, data = child.meta().get("data_dir"), child.meta().get("data")
        if not (place and data) or (os.path.isdir(place) and os.path.samefile(place, data_dir)):
            continue
        if child.params().dataset != "image_folder":  # of the experiment's own: its code is not run here
            continue
        from model.data_loader import fetch_dataloader

        kept = {"pinned": child.resolved()["pinned"], "cache_dir": Path(cache_dir) if cache_dir else None}
        (loader,) = fetch_dataloader(["valid"], data_dir, child.params(), **kept).values()
        if loader.fingerprint != data["valid"]:
            raise UserError(
                f"{parent}: {child.path.name} was trained on {place}, and {data_dir} holds other images or labels. "
                f"Give --data_dir {place}, or begin a search in a new folder"
            )
        return


def train_children(search: Scheduler, fail_fast: bool, as_json: bool) -> None:
    """Train what is missing. On a signal everything is saved; the same command continues."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # the engine
    handlers = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    code = search.folder.path.resolve() / CODE
    engine = ENGINES[search.search.engine].make(code, search.folder.path, search.num_slots, search.search)
    state = "interrupted"
    Thread(target=warm_up).start()  # for the pictures at the end, while the first children begin
    try:
        # one line for each event
        for event in search.run(engine, fail_fast):
            counts = search.counts()
            line = f"[{counts['done']}/{sum(counts.values())}] {event.kind} {event.name} {event.text}".rstrip()
            print(line, file=sys.stderr if as_json else sys.stdout, flush=True)
        state = "done"
    except SystemExit:
        print("saving: the same command continues", file=sys.stderr)
        raise
    finally:
        # children that are still training save and exit
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)  # one signal is enough
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
        # parameters, data, children
        look = partial(look_at_data, cache_dir=args.cache_dir, folds=not args.dry_run)
        search, assignment = open_search(folder, args.data_dir, overrides, look)
        if args.dry_run:
            names = list(search.children.by_name)
            print(to_json({"children": names}).strip() if args.json else "\n".join([*names, f"{len(names)} children"]))
            return 0
        for key in ("cache_dir", "scratch_dir"):
            search.arguments += [f"--{key}", os.path.abspath(value)] if (value := getattr(args, key)) else []
        # the code they run
        say = partial(print, file=sys.stderr) if args.json else print
        consent = Consent(args.trust, ["python", "search_hyperparams.py", *argv], say)
        for remark in freeze_code(search, bool(args.accept), consent):
            print(remark, file=sys.stderr if args.json else sys.stdout)
        if assignment:
            write_json(folder.path / FOLDS, seal_without_id(assignment))
        # training, then tables and pictures
        train_children(search, args.fail_fast, args.json)
        search.children.complete_ends()
        from report.write_results import write_results

        written = write_results(folder.path)
        counts = search.counts()
    if args.json:
        print(to_json({"parent": str(folder.path), **counts, "files": list(map(str, written))}), end="")
    else:
        print((folder.path / "results.md").read_text(encoding="utf-8"), *written, sep="\n")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    run_script(main)
