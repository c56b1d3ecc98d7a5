"""Do the keys of hyper_search and search go together? Each key by itself is checked in params/."""

from folder.history import monitored_column, split_column
from include import PARAMS
from params import Params
from utils import UserError, nearest, reference_name


def check_search(params: Params) -> None:
    """UserError, one line, for the first thing that does not go together."""
    source = str(params.folder / PARAMS)
    check_space(params, source)
    check_sampler(params, source)
    check_pruner(params, source)
    check_metric(params, source)


def check_space(params: Params, source: str) -> None:
    search = params.search
    num_seeds = search.seeds if isinstance(search.seeds, int) else len(search.seeds)
    if not params.hyper_search and num_seeds < 2 and not search.folds:
        example = '"hyper_search": {"learning_rate": [0.001, 0.01]}'
        raise UserError(f"{source}: nothing to search: give {example}, or search.seeds, or search.folds")
    for key in {"seed", "fold"} & params.hyper_search.keys():
        raise UserError(f"{source}: hyper_search.{key}: replicates of a point are not points: set search.{key}s")


def check_sampler(params: Params, source: str) -> None:
    search = params.search
    if search.sampler == "grid":
        return
    has_budget = search.num_trials or (search.sampler == "tpe" and (search.epochs or search.minutes))
    if not has_budget:
        raise UserError(f"{source}: search.num_trials: how many points is a search by {search.sampler} to try?")
    if not params.hyper_search:
        raise UserError(f"{source}: search.sampler: {search.sampler} needs a hyper_search to draw from")


def check_pruner(params: Params, source: str) -> None:
    search = params.search
    if search.sampler == "tpe" and search.pruner in ("asha", "hyperband"):
        raise UserError(f"{source}: search.pruner: {search.pruner} goes with sampler grid or random; median with tpe")
    if search.pruner != "none" and search.folds:
        raise UserError(f"{source}: search.pruner: none goes with search.folds: every fold counts")


def check_metric(params: Params, source: str) -> None:
    """The compared metric is one that the children measure, unless the space says which ones they measure."""
    _, metric = split_column(monitored_column(params.search.metric))
    names = [reference_name(name) for name in (*params.metrics, params.best_metric)]
    known = dict.fromkeys(["loss", *names])
    if metric not in known and not {"metrics", "best_metric"} & params.hyper_search.keys():
        raise UserError(f"{source}: search.metric: {params.search.metric!r} given; {nearest(metric, known)}")
