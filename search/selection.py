"""Which child is trained next, by the sampler and the pruner of the search and its budget of epochs."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from params import Params
from search.children import Child, Children, read_trial
from search.strategy import (
    ChildProgress,
    Point,
    Trial,
    bracket,
    grid,
    promote,
    rungs,
    sample,
    shuffled,
    suggest_point,
    trials_of,
)

RUNG_PRUNERS = ("asha", "hyperband")  # they pause children at rungs


@dataclass(frozen=True)
class Stretch:
    """A child to train, and the epoch to pause after; None: to its end."""

    child: Child
    until: int | None

    @property
    def num_epochs(self) -> float:
        """Epochs that are left to train."""
        end = min(self.until or math.inf, self.child.num_epochs)
        return max(end - len(self.child.progress.scores), 0)


class Selection:
    """Writes the children of a search and says which one is next."""

    def __init__(self, params: Params, children: Children):
        self.params = params
        self.search = params.search
        self.children = children

    def write_children(self) -> None:
        """Write the missing children of the space; for TPE, those of the points that it has suggested so far."""
        self.children.add(self._trials(self._points()))
        self.children.drop_others()

    def _points(self) -> list[Point]:
        space = self.params.hyper_search
        limit = self.search.num_trials
        if self.search.sampler == "tpe":
            return self._recorded_points()
        if self.search.sampler == "random":
            return list(itertools.islice(sample(space, self.params.seed), limit))
        points = grid(space)[:limit]
        return shuffled(points, self.params.seed) if self.search.pruner in RUNG_PRUNERS else points

    def _recorded_points(self) -> list[Point]:
        """The points of the existing children, in the order in which TPE suggested them."""
        kinds: dict[str, type] = {"number": int, "values": dict}
        records = [read_trial(child, kinds) for child in self.children.by_name.values()]
        points = {record["number"]: record["values"] for record in records if record}
        return [points[number] for number in sorted(points)]

    def _trials(self, points: Sequence[Point]) -> list[Trial]:
        """The points with all seeds and folds of the search."""
        seeds = self.search.seeds
        first = self.params.seed
        numbers = list(range(first, first + seeds)) if isinstance(seeds, int) else list(seeds)
        return trials_of(points, numbers, self.search.folds)

    def next(self, running: Sequence[Stretch]) -> Stretch | None:
        """What to train beside what is `running`; None: nothing at present."""
        everybody = list(self.children.by_name.values())
        if self.search.pruner in RUNG_PRUNERS:
            return self._first_affordable(self._promotions(everybody), running)
        # those that are begun first
        waiting = [child for state in ("paused", "new") for child in everybody if child.state == state]
        if not waiting and self.search.sampler == "tpe":
            waiting = self._suggested()
        return self._first_affordable([Stretch(child, None) for child in waiting[:1]], running)

    def _promotions(self, everybody: Sequence[Child]) -> Iterator[Stretch]:
        """For each bracket the child that goes on, or begins, and its next rung."""
        eta = self.search.eta
        ladder = rungs(max((child.num_epochs for child in everybody), default=1.0), eta, self.search.min_epochs)
        brackets: dict[int, list[ChildProgress]] = {}
        for child in everybody:
            number = child.progress.number
            index = bracket(number, len(ladder), eta) if self.search.pruner == "hyperband" else 0
            brackets.setdefault(index, []).append(child.progress)
        for index, members in sorted(brackets.items()):
            if promotion := promote(members, ladder[index:], eta):
                progress, until = promotion
                yield Stretch(self.children.by_name[progress.name], until)

    def _first_affordable(self, stretches: Iterable[Stretch], running: Sequence[Stretch]) -> Stretch | None:
        """The first that the budget of epochs allows; what is running counts to its end."""
        spent = sum(len(child.progress.scores) for child in self.children.by_name.values())
        planned = sum(stretch.num_epochs for stretch in running)
        for stretch in stretches:
            if self.search.epochs is None or spent + planned + stretch.num_epochs <= self.search.epochs:
                return stretch
        return None

    def _suggested(self) -> list[Child]:
        """Write the children of TPE's next point; [] when there are as many points as were asked for."""
        groups = self._groups()
        if len(groups) >= (self.search.num_trials or math.inf):
            return []
        past = []
        for _, group in sorted(groups.items()):
            scores = [child.progress.best(len(child.progress.scores)) for child in group]
            if all(child.state in ("done", "pruned") for child in group) and all(map(math.isfinite, scores)):
                past.append((self.children.point_of(group[0]), sum(scores) / len(scores)))
            elif not any(child.state == "failed" for child in group):
                past.append((self.children.point_of(group[0]), None))
        point = suggest_point(self.params.hyper_search, self.params.seed, past)
        number = max(groups, default=-1) + 1
        return self.children.add([replace(trial, number=number) for trial in self._trials([point])])

    def _groups(self) -> dict[int, list[Child]]:
        """number of a point -> its children; each child that was added by hand is a group with a negative number."""
        groups: dict[int, list[Child]] = {}
        for place, child in enumerate(self.children.by_name.values()):
            number = child.progress.number
            groups.setdefault(number if number >= 0 else -1 - place, []).append(child)
        return groups
