"""Who trains next, and what came of it. The engines schedule; the folders remember.

Nothing is known but what the child folders say: a search that was killed at any instant, started again, looks at
them and goes on. Its own file, record/search.json, holds the time spent and what was given on the command line.
"""

import itertools
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import params as params_module
from folder.folder import Folder, now
from folder.history import monitored_column, split_column
from folder.locate import find_data, find_weights
from folder.provenance import changed_files, snapshot
from include import CODE, EXIT_BUSY, PARAMS, RECORD
from params import Params
from search.children import TRIAL, Child, Children
from search.engines.base import Ended, Engine, Task, stated_cores
from search.engines.local import last_words
from search.strategy import (
    Progress,
    bracket,
    grid,
    is_below_median,
    promote,
    rungs,
    sample,
    shuffled,
    suggest,
    trials_of,
)
from utils import UserError, nearest, num_cores, reference_name, write_json

SEARCH = "record/search.json"
RETRIES = 3  # of a child that ended without having saved anything new
SAVED = (0, 129, 130, 138, 143)  # exit codes of a child that can go on: paused, or asked to end
ON_A_CLUSTER = 64  # children that are handed over at a time, when "parallel" does not say
HEARTBEAT = 5  # seconds between two writes of search.json


@dataclass(frozen=True)
class Event:
    """What a search has to say. `kind`: started, paused, lost, waiting, done, pruned, failed or remark."""

    kind: str
    name: str
    text: str = ""


@dataclass
class Attempt:
    """A child that trains."""

    child: Child
    until: int | None  # epoch; None: its end
    mark: Any  # its manifest's word at the start
    verdict: str = ""  # why it was asked to end


class Search:
    """The search of one parent folder, `slots` children at a time."""

    def __init__(self, folder: Folder, params: Params, overrides: dict[str, Any], data_dir: Path, slots: int):
        self.folder, self.params, self.overrides, self.data_dir = folder, params, overrides, data_dir
        self.search, self.slots = params.search, slots
        self.more: list[str] = []  # arguments of every child's train.py
        self.assignment: dict[str, Any] | None = None  # who is in which part, with folds
        self.futile: dict[str, int] = {}  # child -> ends without anything new
        self.record = folder.record(SEARCH)
        self.before, self.began, self.beat = float(self.record.get("seconds", 0.0)), time.monotonic(), 0.0
        self.running: dict[str, Attempt] = {}
        threads = stated_cores(params.search) or max(1, num_cores() // slots)
        self.children = Children(folder.path, params, overrides, threads)
        self.children.add(self._trials(self._points()))
        self.children.drop_others()

    def _points(self) -> list[dict[str, Any]]:
        """The points of a grid or a random search; of a TPE search those that it came to so far."""
        space, limit = self.params.hyper_search, self.search.num_trials
        if self.search.sampler == "tpe":
            kinds = {"number": int, "values": dict}
            records = [child.folder.record(TRIAL, **kinds) for child in self.children.by_name.values()]
            known = {record["number"]: record["values"] for record in records if record}
            return [known[number] for number in sorted(known)]
        if self.search.sampler == "random":
            return list(itertools.islice(sample(space, self.params.seed), limit))
        points = grid(space)[:limit]
        return shuffled(points, self.params.seed) if self.search.pruner in ("asha", "hyperband") else points

    def _trials(self, points: Sequence[dict[str, Any]]) -> list[Any]:
        seeds, first = self.search.seeds, self.params.seed
        numbers = [first + number for number in range(seeds)] if isinstance(seeds, int) else list(seeds)
        return trials_of(points, numbers, self.search.folds)

    # --- what next ---

    def _next(self) -> tuple[Child, int | None] | None:
        """(who trains next, until which epoch); None when nobody is to be started now."""
        everybody = list(self.children.by_name.values())
        if self.search.pruner in ("asha", "hyperband"):
            return self._affordable(self._promotions(everybody))
        waiting = [child for state in ("paused", "new") for child in everybody if child.state == state]
        if not waiting and self.search.sampler == "tpe":
            waiting = self._suggested()
        return self._affordable((child, None) for child in waiting[:1])

    def _promotions(self, everybody: Sequence[Child]) -> Iterator[tuple[Child, int | None]]:
        eta = self.search.eta
        ladder = rungs(max((child.epochs for child in everybody), default=1.0), eta, self.search.min_epochs)
        parts: dict[int, list[Progress]] = {}
        for child in everybody:
            part = bracket(child.progress.number, len(ladder), eta) if self.search.pruner == "hyperband" else 0
            parts.setdefault(part, []).append(child.progress)
        for part, members in sorted(parts.items()):
            if found := promote(members, ladder[part:], eta):
                yield self.children.by_name[found[0].name], found[1]

    def _affordable(self, wanted: Iterable[tuple[Child, int | None]]) -> tuple[Child, int | None] | None:
        """The first that the budget of epochs allows; what is under way counts to its end."""
        spent = sum(len(child.progress.scores) for child in self.children.by_name.values())
        spent += sum(self._ahead(attempt.child, attempt.until) for attempt in self.running.values())
        for child, until in wanted:
            if self.search.epochs is None or spent + self._ahead(child, until) <= self.search.epochs:
                return child, until
        return None

    @staticmethod
    def _ahead(child: Child, until: int | None) -> float:
        return max(min(until or math.inf, child.epochs) - len(child.progress.scores), 0)

    def _suggested(self) -> list[Child]:
        """The children of TPE's next point, written; [] when there are as many points as were asked for."""
        points: dict[int, list[Child]] = {}
        for place, child in enumerate(self.children.by_name.values()):
            number = child.progress.number
            points.setdefault(number if number >= 0 else -1 - place, []).append(child)  # added ones stand alone
        if len(points) >= (self.search.num_trials or math.inf):
            return []
        past = []
        for _, group in sorted(points.items()):
            scores = [child.progress.best(len(child.progress.scores)) for child in group]
            if all(child.state in ("done", "pruned") for child in group) and all(map(math.isfinite, scores)):
                past.append((self.children.point_of(group[0]), sum(scores) / len(scores)))
            elif not any(child.state == "failed" for child in group):
                past.append((self.children.point_of(group[0]), None))
        point = suggest(self.params.hyper_search, self.params.seed, past)
        number = max(points, default=-1) + 1
        return self.children.add([replace(trial, number=number) for trial in self._trials([point])])

    # --- carrying it out ---

    def run(self, engine: Engine, fail_fast: bool = False) -> Iterator[Event]:
        """Train the children. Yields what happens; a caller that stops asking and closes the engine loses nothing."""
        delayed: dict[str, float] = {}
        ending = ""
        for remark in self.children.remarks:
            yield Event("remark", self.folder.path.name, remark)
        while True:
            if self._is_late() and not ending:
                ending = f"{self.search.minutes:g} minutes are over"
                for name in self.running:
                    engine.stop(name)
                yield Event("remark", self.folder.path.name, ending)
            tasks: list[Task] = []
            while not ending and len(self.running) < engine.num_slots and (found := self._next()):
                tasks.append(self._begin(*found))
                yield Event("started", tasks[-1].name, f"until epoch {found[1]}" if found[1] else "")
            if tasks:
                engine.start(tasks)
            if not self.running and not delayed:
                break
            for name in [name for name, due in delayed.items() if time.monotonic() >= due]:
                del delayed[name]
                self.children.look(self.children.by_name[name])
            for ended in engine.wait(0.2 if delayed else 1.0):
                event = self._conclude(self.running.pop(ended.name), ended)
                if event.kind == "waiting":
                    delayed[event.name] = time.monotonic() + 2
                ending = ending or ("a child failed" if fail_fast and event.kind == "failed" else "")
                yield event
            self._find_hopeless(engine)
            self.write_record("running")
        if not ending and self.search.pruner in ("asha", "hyperband") and self.search.epochs is None:
            for child in self.children.by_name.values():
                if child.state == "paused":  # nobody is promoted any more
                    yield self._say_pruned(child, f"not among the best at epoch {len(child.progress.scores)}")

    def _begin(self, child: Child, until: int | None) -> Task:
        data, path = self.data_dir.resolve(), child.folder.path.resolve()
        argv = ["--data_dir", str(data), "--model_dir", str(path), *self.more]
        argv += ["--until", str(until)] if until else []
        self.running[child.name] = Attempt(child, until, child.mark)
        child.progress.state = "running"
        return Task(child.name, path, argv)

    def _conclude(self, attempt: Attempt, ended: Ended) -> Event:
        """What the end of a child's process means, read from its folder."""
        child = attempt.child
        self.children.look(child)
        epochs = len(child.progress.scores)
        if child.state == "done":
            best = child.progress.best(epochs)
            return Event("done", child.name, f"{self.search.metric} {abs(best):.4f}" if math.isfinite(best) else "")
        if child.state == "paused" and attempt.verdict:
            return self._say_pruned(child, attempt.verdict)
        if ended.code == EXIT_BUSY:  # what an earlier search started may still be saving
            child.progress.state = "running"
            return Event("waiting", child.name, "another process trains it")
        if child.state != "failed" and (ended.code in SAVED or ended.code < 0):
            new = child.mark != attempt.mark
            self.futile[child.name] = 0 if new else self.futile.get(child.name, 0) + 1
            if self.futile[child.name] <= RETRIES:
                paused = ended.code == 0
                return Event("paused" if paused else "lost", child.name,
                             f"after epoch {epochs}" if paused else f"exit {ended.code}")  # fmt: skip
        return self._say_failed(child, ended)

    def _say_failed(self, child: Child, ended: Ended) -> Event:
        """A child that cannot go on: its folder says why, and the others do."""
        status, child.progress.state = child.folder.status(), "failed"
        said = status["message"] if status["state"] == "failed" else ""
        child.message = said or ended.message or last_words(self.folder.path, child.name) or f"exit {ended.code}"
        if not said:
            child.folder.write_status("failed", child.message, ended.code, epoch=len(child.progress.scores))
        return Event("failed", child.name, f"exit {ended.code}: {child.message}")

    def _say_pruned(self, child: Child, reason: str) -> Event:
        child.progress.state, child.message = "pruned", f"{self.search.pruner}: {reason}"
        child.folder.write_status("pruned", child.message, epoch=len(child.progress.scores))
        return Event("pruned", child.name, reason)

    def _find_hopeless(self, engine: Engine) -> None:
        """Median pruning: a child that falls behind is asked to end."""
        if self.search.pruner != "median":
            return
        everybody = [child.progress for child in self.children.by_name.values()]
        for attempt in self.running.values():
            child = attempt.child
            self.children.look(child)
            child.progress.state = "running"
            if not attempt.verdict and is_below_median(child.progress, everybody):
                attempt.verdict = f"behind half of the others at epoch {len(child.progress.scores)}"
                engine.stop(child.name)

    # --- what it remembers ---

    def _is_late(self) -> bool:
        return self.search.minutes is not None and self.seconds >= 60 * self.search.minutes

    @property
    def seconds(self) -> float:
        """Time spent, earlier sessions included."""
        return self.before + time.monotonic() - self.began

    def write_record(self, state: str) -> None:
        """record/search.json; "running" every few seconds."""
        if state == "running" and time.monotonic() - self.beat < HEARTBEAT:
            return
        self.beat = time.monotonic()
        record = {"state": state, "data_dir": str(self.data_dir.resolve()), "overrides": self.overrides,
                  "seconds": round(self.seconds, 1), "pid": os.getpid(), "host": socket.gethostname(),
                  "updated": now()}  # fmt: skip
        write_json(self.folder.path / SEARCH, self.record | record)

    def counts(self) -> dict[str, int]:
        """How many children are done, failed, pruned, and not done."""
        states = [child.state for child in self.children.by_name.values()]
        found = {state: states.count(state) for state in ("done", "failed", "pruned")}
        return found | {"open": len(states) - sum(found.values())}


# --- how it begins ------------------------------------------------------------------------------------


def open_search(
    folder: Folder,
    args: Any,
    overrides: dict[str, Any],
    num_gpus: int,
    deal: Callable[[Params, Path], dict[str, Any] | None] | None = None,
) -> Search:
    """The search of a parent folder, as its params.json, its record and the command line say. UserError.

    `deal` looks at the data, before any child is written: who validates in which fold.
    """
    record = folder.record(SEARCH, overrides=dict) if (folder.path / SEARCH).exists() else {}
    overrides = params_module.deep_merge(record.get("overrides", {}), overrides)
    params = params_module.load(folder.path, overrides)
    data_dir = find_data(args.data_dir, params, record.get("data_dir"))
    if not data_dir.is_dir():
        raise UserError(f"{data_dir}: no such dataset folder")
    more = []
    if params.search.restore_file:
        weights = find_weights(folder, str(params.folder / params.search.restore_file))
        more = ["--restore_file", str(weights.resolve())]
    stated = params.search.parallel if "parallel" in params.search.model_fields_set else None
    slots = (num_gpus or 1) if params.search.engine == "local" else ON_A_CLUSTER
    check(params)
    assignment = deal(params, data_dir) if deal else None
    search = Search(folder, params, overrides, data_dir, stated or slots)
    search.more, search.assignment = search.more + more, assignment
    return search


def freeze_code(search: Search, accept: bool) -> list[str]:
    """record/code is what runs from now on, or has been all along. Returns what to say of it."""
    folder, resolved = search.folder, search.params.resolved()
    (folder.path / RECORD).mkdir(exist_ok=True)
    if not (folder.path / CODE).exists() or not (changed := changed_files(folder, resolved)):
        snapshot(folder, resolved)
        return []
    names = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
    if accept:
        snapshot(folder, resolved)
        search.more += ["--accept", "code"]
        return [f"going on with changed code, as accepted: {names}"]
    return [f"the search goes on with the code it began with ({names} changed since); --accept code takes the new"]


def check(params: Params) -> None:
    """UserError when hyper_search and search do not go together."""
    search, source = params.search, params.folder / PARAMS
    num_seeds = search.seeds if isinstance(search.seeds, int) else len(search.seeds)
    if not params.hyper_search and num_seeds < 2 and not search.folds:
        example = '"hyper_search": {"learning_rate": [0.001, 0.01]}'
        raise UserError(f"{source}: nothing to search: give {example}, or search.seeds, or search.folds")
    budget = search.num_trials or (search.sampler == "tpe" and (search.epochs or search.minutes))
    if search.sampler != "grid" and not budget:
        raise UserError(f"{source}: search.num_trials: how many points is a search by {search.sampler} to try?")
    if search.sampler != "grid" and not params.hyper_search:
        raise UserError(f"{source}: search.sampler: {search.sampler} needs a hyper_search to draw from")
    if search.sampler == "tpe" and search.pruner in ("asha", "hyperband"):
        raise UserError(f"{source}: search.pruner: {search.pruner} goes with sampler grid or random; median with tpe")
    if search.pruner != "none" and search.folds:
        raise UserError(f"{source}: search.pruner: none goes with search.folds: every fold counts")
    metric = split_column(monitored_column(search.metric))[1]
    names = [reference_name(name) for name in (*params.metrics, params.best_metric)]
    if metric not in (known := ["loss", *names]) and not {"metrics", "best_metric"} & params.hyper_search.keys():
        raise UserError(f"{source}: search.metric: {search.metric!r} given; {nearest(metric, dict.fromkeys(known))}")
    for key in {"seed", "fold"} & params.hyper_search.keys():
        raise UserError(f"{source}: hyper_search.{key}: replicates of a point, not points: set search.{key}s")
