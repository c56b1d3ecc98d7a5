"""Trains the children of a search: starts them on an engine and reads from their folders how they ended.

The child folders hold all of its state: a search that was killed at any instant and is started again reads them
and continues. Its own file, record/search.json, holds the time spent and what was given on the command line.
"""

import math
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from folder.folder import Folder, now
from folder.manifest import seal_without_id
from include import EXIT_BUSY
from params import Params
from search.children import Child, Children
from search.engines.base import SearchEngine, Task, TaskEnd
from search.engines.local import last_line
from search.engines.registry import ENGINES
from search.selection import RUNG_PRUNERS, Selection, Stretch
from search.strategy import is_below_median
from utils import write_json

SEARCH = "record/search.json"
RETRIES = 3  # number of times in a row that a child may end without having saved anything new
SAVED = (0, 129, 130, 138, 143)  # exit codes of a child that can go on: paused, or asked to end
HEARTBEAT = 5  # seconds between two writes of search.json
BUSY_DELAY = 2  # seconds until a child that another process trained is looked at again


@dataclass(frozen=True)
class SearchEvent:
    """Something that happened to a child, or a remark on the search."""

    kind: Literal["started", "paused", "lost", "waiting", "done", "pruned", "failed", "remark"]
    name: str
    text: str = ""


@dataclass
class ActiveChild:
    """A child that is being trained."""

    stretch: Stretch
    commit: object  # its last commit at the start
    verdict: str = ""  # why it was asked to end

    @property
    def child(self) -> Child:
        return self.stretch.child


class Scheduler:
    """The search of one parent folder. `arguments`: flags for train.py, the same for every child."""

    def __init__(
        self,
        folder: Folder,
        params: Params,
        overrides: dict[str, object],
        data_dir: Path,
        num_slots: int,
        arguments: list[str],
    ):
        self.folder = folder
        self.params = params
        self.search = params.search
        self.overrides = overrides
        self.data_dir = data_dir
        self.num_slots = num_slots
        self.arguments = arguments
        # time spent, earlier sessions included
        self.record = folder.record(SEARCH)
        self.seconds_before = float(self.record.get("seconds", 0.0))
        self.began = time.monotonic()
        self.written = 0.0  # when record/search.json was
        # the children
        threads = ENGINES[self.search.engine].cores_per_task(self.search, num_slots)
        self.children = Children(folder.path, params, overrides, threads)
        self.selection = Selection(params, self.children)
        self.selection.write_children()
        self.active: dict[str, ActiveChild] = {}
        self.futile: dict[str, int] = {}  # child -> times in a row that it ended without anything new
        self.delayed: dict[str, float] = {}  # child that another process trains -> when to look again
        self.is_ending = False  # no more children are started

    # --- the loop ---

    def run(self, engine: SearchEngine, fail_fast: bool = False) -> Iterator[SearchEvent]:
        """Train the children; yields what happens. A caller that stops early and closes the engine loses nothing."""
        for remark in self.children.remarks:
            yield SearchEvent("remark", self.folder.path.name, remark)
        while True:
            # stop when the minutes are over
            if self._is_late() and not self.is_ending:
                self._stop_all(engine)
                yield SearchEvent("remark", self.folder.path.name, f"{self.search.minutes:g} minutes are over")
            # fill the free slots
            yield from self._start_children(engine)
            if not self.active and not self.delayed:
                break
            # look again at children that another process trained
            self._look_at_delayed()
            # see which ones have ended, and how
            for end in engine.wait(0.2 if self.delayed else 1.0):
                event = self._conclude(self.active.pop(end.name), end)
                self.is_ending = self.is_ending or (fail_fast and event.kind == "failed")
                yield event
            # stop those that fall behind
            self._stop_hopeless(engine)
            self.write_record("running")
        # no child is promoted any more
        if not self.is_ending:
            yield from self._prune_paused()

    def _stop_all(self, engine: SearchEngine) -> None:
        self.is_ending = True
        for name in self.active:
            engine.stop(name)

    def _start_children(self, engine: SearchEngine) -> Iterator[SearchEvent]:
        """Start as many children as there are free slots, all at once."""
        tasks: list[Task] = []
        while not self.is_ending and len(self.active) < engine.num_slots:
            stretch = self.selection.next([active.stretch for active in self.active.values()])
            if stretch is None:
                break
            tasks.append(self._make_task(stretch))
            yield SearchEvent("started", tasks[-1].name, f"until epoch {stretch.until}" if stretch.until else "")
        if tasks:
            engine.start(tasks)

    def _make_task(self, stretch: Stretch) -> Task:
        child = stretch.child
        path = child.folder.path.resolve()
        argv = ["--data_dir", str(self.data_dir.resolve()), "--model_dir", str(path), *self.arguments]
        argv += ["--until", str(stretch.until)] if stretch.until else []
        self.active[child.name] = ActiveChild(stretch, child.last_commit)
        child.progress.state = "running"
        return Task(child.name, path, argv)

    def _look_at_delayed(self) -> None:
        for name, due in list(self.delayed.items()):
            if time.monotonic() >= due:
                del self.delayed[name]
                self.children.look(self.children.by_name[name])

    def _stop_hopeless(self, engine: SearchEngine) -> None:
        """Median pruning: ask children that fall behind to end."""
        if self.search.pruner != "median":
            return
        everybody = [child.progress for child in self.children.by_name.values()]
        for active in self.active.values():
            child = active.child
            self.children.look(child)
            child.progress.state = "running"
            if not active.verdict and is_below_median(child.progress, everybody):
                active.verdict = f"below the median of the others at epoch {len(child.progress.scores)}"
                engine.stop(child.name)

    def _prune_paused(self) -> Iterator[SearchEvent]:
        """With rungs, what is still paused at the end of a search without a budget has lost."""
        if self.search.pruner in RUNG_PRUNERS and self.search.epochs is None:
            for child in self.children.by_name.values():
                if child.state == "paused":
                    yield self._prune(child, f"not among the best at epoch {len(child.progress.scores)}")

    # --- how a child ended ---

    def _conclude(self, active: ActiveChild, end: TaskEnd) -> SearchEvent:
        """Interpret the end of a child's process, by reading its folder."""
        child = active.child
        self.children.look(child)
        num_epochs = len(child.progress.scores)
        if child.state == "done":
            best = child.progress.best(num_epochs)
            text = f"{self.search.metric} {abs(best):.4f}" if math.isfinite(best) else ""
            return SearchEvent("done", child.name, text)
        if child.state == "paused" and active.verdict:
            return self._prune(child, active.verdict)
        if end.code == EXIT_BUSY:  # a process of an earlier search may still be saving
            child.progress.state = "running"
            self.delayed[child.name] = time.monotonic() + BUSY_DELAY
            return SearchEvent("waiting", child.name, "another process trains it")
        if child.state != "failed" and self._can_go_on(active, end):
            if end.code == 0:
                return SearchEvent("paused", child.name, f"after epoch {num_epochs}")
            return SearchEvent("lost", child.name, f"exit {end.code}")
        return self._fail(child, end)

    def _can_go_on(self, active: ActiveChild, end: TaskEnd) -> bool:
        """Whether the child was only interrupted, and is not interrupted again and again without getting further."""
        if end.code not in SAVED and end.code >= 0:
            return False
        child = active.child
        is_futile = child.last_commit == active.commit
        self.futile[child.name] = self.futile.get(child.name, 0) + 1 if is_futile else 0
        return self.futile[child.name] <= RETRIES

    def _fail(self, child: Child, end: TaskEnd) -> SearchEvent:
        """Note in the folder of a child that cannot go on why that is; the other children go on."""
        status = child.folder.status()
        child.progress.state = "failed"
        told = status["message"] if status["state"] == "failed" else ""
        child.message = told or end.message or last_line(self.folder.path, child.name) or f"exit {end.code}"
        if not told:
            child.folder.write_status("failed", child.message, end.code, epoch=len(child.progress.scores))
        return SearchEvent("failed", child.name, f"exit {end.code}: {child.message}")

    def _prune(self, child: Child, reason: str) -> SearchEvent:
        child.progress.state = "pruned"
        child.message = f"{self.search.pruner}: {reason}"
        child.folder.write_status("pruned", child.message, epoch=len(child.progress.scores))
        return SearchEvent("pruned", child.name, reason)

    # --- what is written down ---

    def _is_late(self) -> bool:
        return self.search.minutes is not None and self.seconds >= 60 * self.search.minutes

    @property
    def seconds(self) -> float:
        """Time spent, earlier sessions included."""
        return self.seconds_before + time.monotonic() - self.began

    def write_record(self, state: str) -> None:
        """Write record/search.json; "running" every few seconds."""
        if state == "running" and time.monotonic() - self.written < HEARTBEAT:
            return
        self.written = time.monotonic()
        record = {
            "state": state,
            "data_dir": str(self.data_dir.resolve()),
            "overrides": self.overrides,
            "seconds": round(self.seconds, 1),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "updated": now(),
        }
        write_json(self.folder.path / SEARCH, seal_without_id(self.record | record))

    def counts(self) -> dict[str, int]:
        """Number of children that are done, failed, pruned, and none of these."""
        states = [child.state for child in self.children.by_name.values()]
        ended = {state: states.count(state) for state in ("done", "failed", "pruned")}
        return ended | {"open": len(states) - sum(ended.values())}
