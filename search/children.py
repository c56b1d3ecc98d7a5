"""The child folders of a search: written from the space, found again by name or by what they say, read."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import params as params_module
from folder.folder import Folder
from folder.history import (
    is_minimized,
    monitored_column,
    recorded_minimized,
    split_column,
    validation_column,
    validation_values,
)
from folder.manifest import read_manifest
from folder.provenance import localised
from include import CHECKPOINTS, CODE, EXIT_NONFINITE, META, PARAMS
from params import Params
from search.strategy import Point, Progress, Trial, names_of
from utils import UserError, write_json

TRIAL = "record/trial.json"


@dataclass
class Child:
    """One child folder, and how far it has come."""

    folder: Folder
    progress: Progress
    epochs: float = 0.0  # of the whole run
    message: str = ""  # what is the matter with it

    @property
    def name(self) -> str:
        return self.progress.name

    @property
    def state(self) -> str:
        return self.progress.state

    @property
    def mark(self) -> Any:
        """What its manifest names: another one after each commit."""
        return read_manifest(self.folder.path / CHECKPOINTS).get("last")


class Children:
    """The children of one parent folder. `threads`: what each states, where the parent leaves them open."""

    def __init__(self, parent: Path, params: Params, overrides: dict[str, Any], threads: int):
        self.parent, self.params, self.threads = parent, params, threads
        self.base = {key: value for key, value in params_module.merged(parent, overrides).items()
                     if key not in ("hyper_search", "search")}  # fmt: skip
        self.by_name: dict[str, Child] = {}
        self.remarks: list[str] = []
        for path in sorted(parent.iterdir()):
            if path.is_dir() and (path / PARAMS).is_file():
                self._adopt(path)

    def add(self, trials: Sequence[Trial]) -> list[Child]:
        """A child for each: found by its name, else by what it says, else written. In the order of `trials`."""
        known = {identity(read_params(child.folder.path)): child for child in self.by_name.values()}
        named = [(trial, name, self._values(trial, name)) for trial, name in zip(trials, names_of(trials), strict=True)]
        found, changed = [], []
        for trial, name, values in named:  # all of them are possible: now something may be written
            child = self.by_name.get(name) or known.get(identity(values))
            if child and not self._follows(child, values):
                changed.append(child.name)
            child = child or self._write(name, values, trial)
            child.progress.number = trial.number
            self.by_name[child.name] = self.by_name.pop(child.name)  # folders were found in the order of their names
            found.append(child)
        if changed:
            which = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            self.remarks.append(f"{which}: made with other parameters than now, or edited: kept as they are")
        return found

    def drop_others(self) -> None:
        """Forget what an earlier space asked for; children that somebody added by hand stay."""
        for child in [child for child in self.by_name.values() if child.progress.number < 0]:
            if (child.folder.path / TRIAL).exists():
                if child.state not in ("done", "pruned"):
                    self.remarks.append(f"{child.name}: no longer in the space, and not done: left as it is")
                del self.by_name[child.name]

    def point_of(self, child: Child) -> Point:
        """The searched values, as the child's params.json has them: it may have been edited or added by hand."""
        values = params_module.load(child.folder.path).resolved()
        return {key: look_up(values, key) for key in self.params.hyper_search}

    def look(self, child: Child) -> None:
        """Read how far a child has come."""
        folder, progress = child.folder, child.progress
        try:
            manifest = read_manifest(folder.path / CHECKPOINTS)
            status, history = folder.status(), folder.history()
        except UserError as error:
            progress.state, child.message = "failed", str(error)
            return
        column, sign = compared(folder, self.params.search.metric)
        rows = history[: manifest["last"]["epoch"]] if manifest else []
        progress.scores = [score(row, column, sign) for row in rows]
        if manifest.get("done"):
            progress.state = "done"
        elif status["state"] == "pruned" and self.params.search.pruner != "none":
            progress.state = "pruned"
        elif status["state"] == "failed" and status.get("code") == EXIT_NONFINITE:
            progress.state, child.message = "failed", status["message"]
        else:
            progress.state = "paused" if manifest else "new"

    def _values(self, trial: Trial, name: str) -> dict[str, Any]:
        """params.json of a child: merged, self-contained, with the frozen copies of the experiment's own files."""
        values = params_module.deep_merge(self.base, nested(trial.values))
        values |= {"threads": self.threads} if values.get("threads") is None else {}
        values |= {"seed": trial.seed} if trial.seed is not None else {}
        values |= {"fold": list(trial.fold)} if trial.fold else {}
        values = localised(params_module.moved(values, ".."), f"../{CODE}/experiment/")
        params_module.from_written(values, self.parent / name, f"{self.parent / PARAMS}, {name}")
        return values

    def _follows(self, child: Child, values: dict[str, Any]) -> bool:
        """Whether a child says `values`; one that never began, and that nobody edited, is written again to do so."""
        path = child.folder.path
        if (said := identity(read_params(path))) == identity(values):
            return True
        written = child.folder.record(TRIAL).get("written")
        if child.state == "new" and written == digest(said):
            write_json(path / TRIAL, child.folder.record(TRIAL) | {"written": digest(identity(values))})
            write_json(path / PARAMS, values)
            return True
        return False

    def _write(self, name: str, values: dict[str, Any], trial: Trial) -> Child:
        path = self.parent / name
        (path / "record").mkdir(parents=True, exist_ok=True)
        write_json(path / TRIAL, {"number": trial.number, "values": trial.values, "written": digest(identity(values))})
        write_json(path / PARAMS, values)
        return self._adopt(path)

    def _adopt(self, path: Path) -> Child:
        child = self.by_name[path.name] = Child(Folder(path), Progress(path.name, -1))
        try:
            child.epochs = params_module.load(path).num_epochs
            self.look(child)
        except UserError as error:
            child.progress.state, child.message = "failed", str(error)
        return child


def read_params(path: Path) -> dict[str, Any]:
    """What a child's params.json says, {} when it cannot be read."""
    try:
        return params_module.read(path / PARAMS)
    except UserError:
        return {}


def compared(folder: Folder, metric: str) -> tuple[str, int]:
    """(column of the history, 1 or -1 so that larger is better) of `search.metric`."""
    column = monitored_column(metric)
    minimized = recorded_minimized(folder.record(META))
    return column, -1 if is_minimized(split_column(column)[1], minimized) else 1


def score(row: dict[str, Any], column: str, sign: int) -> float:
    """The compared value of a history row, -inf where it is not finite. UserError when there is no such metric."""
    if column not in row:
        names = ", ".join(map(validation_column, validation_values(row)))
        raise UserError(f"search.metric: there is no {column!r} in the history; possible: {names}")
    value = row[column]
    return sign * value if isinstance(value, int | float) and math.isfinite(value) else -math.inf


def identity(values: dict[str, Any]) -> str:
    """What makes two children the same: everything written but the number of threads."""
    return json.dumps({key: value for key, value in values.items() if key != "threads"}, sort_keys=True)


def digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """{"early_stopping.patience": 3} -> {"early_stopping": {"patience": 3}}"""
    result: dict[str, Any] = {}
    for name, value in values.items():
        node = result
        *parents, last = name.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return result


def look_up(values: dict[str, Any], name: str) -> Any:
    """The value of a dotted name, None when there is none."""
    node: Any = values
    for part in name.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node
