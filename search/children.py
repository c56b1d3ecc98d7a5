"""The child folders of a search: writing them, finding them again by name or by content, reading their progress."""

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import params as params_module
from engine.use.repair import repair
from folder.console import name_some
from folder.folder import Folder
from folder.history import (
    is_minimized,
    monitored_column,
    recorded_minimized,
    split_column,
    validation_column,
    validation_values,
)
from folder.manifest import read_manifest, seal_without_id
from folder.provenance import localise
from folder.records import read_progress
from include import CHECKPOINTS, CODE, EXIT_DAMAGED, EXIT_NONFINITE, META, PARAMS, RECORD
from params import Params
from search.strategy import ChildProgress, Point, Trial, names_of
from utils import JsonObject, UserError, write_json

TRIAL = "record/trial.json"  # of a child: its number, its values, and the digest of its params.json as written
Values = dict[str, object]  # what a params.json says


@dataclass
class Child:
    """One child folder, and how far it has come."""

    folder: Folder
    progress: ChildProgress
    num_epochs: float = 0.0  # of the whole run
    message: str = ""  # why it failed or was pruned

    @property
    def name(self) -> str:
        return self.progress.name

    @property
    def state(self) -> str:
        return self.progress.state

    @property
    def last_commit(self) -> object:
        """The last entry of its manifest: another one after each commit."""
        return read_manifest(self.folder.path / CHECKPOINTS).get("last")


class Children:
    """The children of one parent folder. `threads`: what is written into each of them, unless the parent sets it."""

    def __init__(self, parent: Path, params: Params, overrides: dict[str, object], threads: int):
        self.parent = parent
        self.params = params
        self.threads = threads
        merged = params_module.load_written(parent, overrides)
        self.base = {key: value for key, value in merged.items() if key not in ("hyper_search", "search")}
        self.by_name: dict[str, Child] = {}
        self.remarks: list[str] = []
        for path in sorted(parent.iterdir()):
            if path.is_dir() and (path / PARAMS).is_file():
                self._adopt(path)

    def add(self, trials: Sequence[Trial]) -> list[Child]:
        """A child for each trial, in their order: found by its name, else by its content, else written."""
        known = {identity(read_params(child.folder.path)): child for child in self.by_name.values()}
        # check all parameters before any child is written
        named = [(trial, name, self._values(trial, name)) for trial, name in zip(trials, names_of(trials), strict=True)]
        children = []
        changed = []
        for trial, name, values in named:
            child = self.by_name.get(name) or known.get(identity(values))
            if child and not self._is_up_to_date(child, values):
                changed.append(child.name)
            child = child or self._write(name, values, trial)
            child.progress.number = trial.number
            # from the order of names to the order of the search
            self.by_name[child.name] = self.by_name.pop(child.name)
            children.append(child)
        if changed:
            names = name_some(changed, 3)
            self.remarks.append(f"{names}: made with other parameters than now, or edited: kept as they are")
        return children

    def drop_others(self) -> None:
        """Forget the children of an earlier space; those that were added by hand stay."""
        for child in [child for child in self.by_name.values() if child.progress.number < 0]:
            if (child.folder.path / TRIAL).exists():
                if child.state not in ("done", "pruned"):
                    self.remarks.append(f"{child.name}: no longer in the space, and not done: left as it is")
                del self.by_name[child.name]

    def point_of(self, child: Child) -> Point:
        """The searched values as the child's params.json has them: it may have been edited or added by hand."""
        values = params_module.load(child.folder.path).resolved()
        return {key: look_up(values, key) for key in self.params.hyper_search}

    def look(self, child: Child) -> None:
        """Read how far a child has come."""
        folder = child.folder
        progress = child.progress
        try:
            manifest = read_progress(folder)
            status = folder.status()
            history = folder.history()
        except UserError as error:
            progress.state = "failed"
            child.message = str(error)
            return
        # scores of the epochs that are committed
        column, sign = compared_column(folder, self.params.search.metric)
        rows = history[: manifest["last"]["epoch"]] if manifest else []
        progress.scores = [score(row, column, sign) for row in rows]
        # state
        if manifest.get("done"):
            progress.state = "done"
        elif status["state"] == "pruned" and self.params.search.pruner != "none":
            progress.state = "pruned"
        elif status["state"] == "failed" and status.get("code") == EXIT_NONFINITE:
            progress.state = "failed"
            child.message = status["message"]
        else:
            progress.state = "paused" if manifest else "new"

    def complete_ends(self) -> None:
        """Have each child that is done say so: it may have been killed after its last commit, before it could."""
        for child in self.by_name.values():
            if child.state == "done" and child.folder.status()["state"] != "done":
                with contextlib.suppress(UserError), child.folder.locked():  # busy: it is about to say so itself
                    repair(child.folder)

    def _values(self, trial: Trial, name: str) -> Values:
        """params.json of a child: everything merged, and the experiment's own files as their frozen copies."""
        values = params_module.deep_merge(self.base, nested(trial.values))
        if values.get("threads") is None:
            values["threads"] = self.threads
        if trial.seed is not None:
            values["seed"] = trial.seed
        if trial.fold:
            values["fold"] = list(trial.fold)
        values = localise(params_module.move_paths(values, ".."), f"../{CODE}/experiment/")
        params_module.from_written(values, self.parent / name, f"{self.parent / PARAMS}, {name}")  # UserError
        return values

    def _is_up_to_date(self, child: Child, values: Values) -> bool:
        """True if the child's params.json equals `values`; an unstarted, unedited child is rewritten."""
        path = child.folder.path
        current = identity(read_params(path))
        if current == identity(values):
            return True
        record = read_trial(child)
        if child.state == "new" and record.get("written") == digest(current):
            write_json(path / TRIAL, seal_without_id(record | {"written": digest(identity(values))}))
            write_json(path / PARAMS, values)
            return True
        return False

    def _write(self, name: str, values: Values, trial: Trial) -> Child:
        path = self.parent / name
        (path / RECORD).mkdir(parents=True, exist_ok=True)
        record = {"number": trial.number, "values": trial.values, "written": digest(identity(values))}
        write_json(path / TRIAL, seal_without_id(record))
        write_json(path / PARAMS, values)
        return self._adopt(path)

    def _adopt(self, path: Path) -> Child:
        """Take a folder as a child, and read how far it has come."""
        child = Child(Folder(path), ChildProgress(path.name, -1))
        self.by_name[path.name] = child
        try:
            child.num_epochs = params_module.load(path).num_epochs
            self.look(child)
        except UserError as error:
            child.progress.state = "failed"
            child.message = str(error)
        return child


def read_trial(child: Child, kinds: dict[str, type] | None = None) -> JsonObject:
    """What the search recorded of a child, {} of one that was added by hand. UserError (exit 3) when it is damaged."""
    try:
        return child.folder.record(TRIAL, {}, **(kinds or {}))
    except UserError as damaged:
        way_out = f"Bring it back, or remove it: {child.name} then counts as a folder that was added by hand"
        raise UserError(f"{damaged}; not touched. {way_out}", EXIT_DAMAGED) from None


def read_params(path: Path) -> Values:
    """What a child's params.json says; {} when it cannot be read."""
    try:
        return params_module.read(path / PARAMS)
    except UserError:
        return {}


def compared_column(folder: Folder, metric: str) -> tuple[str, int]:
    """(column of the history, 1 or the -1 that makes larger better) of `search.metric`."""
    column = monitored_column(metric)
    minimized = recorded_minimized(folder.record(META))
    return column, -1 if is_minimized(split_column(column)[1], minimized) else 1


def score(row: dict[str, object], column: str, sign: int) -> float:
    """The compared value of a history row, -inf where it is not finite. UserError when there is no such column."""
    if column not in row:
        names = ", ".join(map(validation_column, validation_values(row)))
        raise UserError(f"search.metric: there is no {column!r} in the history; possible: {names}")
    value = row[column]
    return sign * value if isinstance(value, int | float) and math.isfinite(value) else -math.inf


def identity(values: Values) -> str:
    """A key that is equal for children with the same parameters, whatever their number of threads."""
    return json.dumps({key: value for key, value in values.items() if key != "threads"}, sort_keys=True)


def digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


def nested(values: Point) -> Values:
    """{"early_stopping.patience": 3} -> {"early_stopping": {"patience": 3}}"""
    result: Values = {}
    for name, value in values.items():
        for part in reversed(name.split(".")[1:]):
            value = {part: value}
        result = params_module.deep_merge(result, {name.split(".")[0]: value})
    return result


def look_up(values: Values, name: str) -> object:
    """The value of a dotted name, None when there is none."""
    node: object = values
    for part in name.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node
