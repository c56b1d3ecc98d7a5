"""How a search begins: its parameters, data and weights, the code that it freezes, and its children, written."""

from collections.abc import Callable
from pathlib import Path

import params as params_module
from folder.console import name_some
from folder.folder import Folder
from folder.locate import find_data, find_weights
from folder.provenance import changed_files, check_frozen_code, references, snapshot
from folder.trust import Consent, check_trust
from include import CODE, EXIT_DAMAGED, FOLD, FOLDS, RECORD
from params import Params
from search.children import read_params
from search.engines.registry import ENGINES
from search.scheduler import SEARCH, Scheduler
from search.validation import check_search
from utils import JsonObject, UserError, read_json

Assignment = dict[str, object]  # the fold in which each image validates


def open_search(
    folder: Folder,
    data_dir: str | None,
    overrides: dict[str, object],
    look_at_data: Callable[[Params, Path], Assignment | None],
) -> tuple[Scheduler, Assignment | None]:
    """The search of a parent folder, as its params.json, its record and the command line say; writes the children.

    `data_dir`, `overrides`: from the command line; what was given at an earlier start still counts.
    `look_at_data` is called before any child is written: it raises for data that no child could train with. What it
    returns is returned. UserError.
    """
    # parameters: the file, then what earlier command lines changed, then this one
    record = read_search(folder)
    overrides = params_module.locate_overrides(overrides, folder.path)
    overrides = params_module.deep_merge(record.get("overrides", {}), overrides)
    params = params_module.load(folder.path, overrides)
    # data and weights
    data = find_data(data_dir, params, record.get("data_dir"))
    folder.check_data(data)
    if not data.is_dir():
        raise UserError(f"{data}: no such dataset folder")
    arguments = []
    if params.search.restore_file:
        weights = find_weights(folder, str(params.folder / params.search.restore_file))
        arguments = ["--restore_file", str(weights.resolve())]
    check_search(params)
    assignment = look_at_data(params, data)
    check_folds(folder.path, assignment)
    # children
    is_stated = "parallel" in params.search.model_fields_set
    num_slots = params.search.parallel if is_stated else ENGINES[params.search.engine].default_slots()
    return Scheduler(folder, params, overrides, data, num_slots, arguments), assignment


def read_search(folder: Folder) -> JsonObject:
    """What the search recorded of its earlier starts, {} before the first. UserError (exit 3) when it is damaged."""
    try:
        return folder.record(SEARCH, overrides=dict)
    except UserError as damaged:
        way_out = "Bring it back, or remove it and give the data and all changed parameters again"
        raise UserError(f"{damaged}; not touched. {way_out}", EXIT_DAMAGED) from None


def check_folds(parent: Path, assignment: Assignment | None) -> None:
    """UserError when children have begun with other parts of the data than those that it makes now."""
    if not assignment or not (parent / FOLDS).exists():
        return
    try:
        recorded = read_json(parent / FOLDS)
    except UserError:
        return  # damaged: it is written again, and each child compares its own data
    digest = recorded.get("parts_digest")
    if recorded.get("k") != assignment["k"] or digest == assignment["parts_digest"]:
        return
    begun = [path for path in parent.glob(f"*/{FOLD}") if read_json(path).get("parts_digest") == digest]
    if begun:
        raise UserError(
            f"{parent}: the images, labels or groups changed since this search began, and with them its folds: "
            f"{len(begun)} children were trained on other parts. Put the data back, or begin a search in a new folder"
        )


def freeze_code(search: Scheduler, accept: bool, consent: Consent) -> list[str]:
    """Freeze the code in record/code, or keep the frozen one; `accept`: replace it. Returns what to tell the user.

    UserError when code that is there, in the parent or in a child, was not sealed by this user and `consent` is not
    given.
    """
    folder = search.folder
    resolved = search.params.resolved()
    (folder.path / RECORD).mkdir(exist_ok=True)
    is_frozen = (folder.path / CODE).exists()
    changed = changed_files(folder, resolved) if is_frozen else []
    if is_frozen and not (changed and accept):
        check_frozen_code(folder.path, consent)
    check_children(search, consent)
    if not changed:
        snapshot(folder, resolved)
        return []
    names = name_some(changed, 5)
    if accept:
        snapshot(folder, resolved)
        search.arguments += ["--accept", "code"]
        return [f"continuing with changed code, as accepted: {names}"]
    return [f"the search continues with the code it began with ({names} changed since); --accept code takes the new"]


def check_children(search: Scheduler, consent: Consent) -> None:
    """UserError when a child that goes on has files of its own that neither it nor the parent has sealed."""
    for child in search.children.by_name.values():
        path = child.folder.path
        names = sorted(references(read_params(path))) if child.state == "paused" else []
        if names:
            check_trust(path, f"its own {', '.join(names)}", consent, search.folder.path / CODE)
