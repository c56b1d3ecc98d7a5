"""Dealing whole groups of images to parts, so that each part has its share of every class as far as groups allow.

A unit is what cannot be divided: the images of one group, and whatever has the same content as one of them. The same
units give the same parts, whatever the names of groups and files.
"""

import itertools
from collections.abc import Sequence

import numpy as np

MOST_ROUNDS = 8  # times that units are dealt again
MOST_DEALT_AGAIN = 50_000  # units, over all rounds: about a second


def number_contents(keys: np.ndarray) -> np.ndarray:
    """(N, 2) digests -> (N,) numbers from 0 on: equal for equal digests, in the order of the digests."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    is_new = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    contents = np.empty(len(keys), np.int64)
    contents[order] = np.concatenate([[0], np.cumsum(is_new)])
    return contents


def find_units(groups: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(N,) groups and (N, 2) digests -> (N,) the unit of each image, numbered in the order of their least digest."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # Number contents in the order of their digests, and groups after them.
    contents = number_contents(keys)
    num_contents = int(contents.max()) + 1
    numbers = np.unique(groups, return_inverse=True)[1].reshape(-1) + num_contents
    # Images are edges between their content and their group; what hangs together is one unit.
    num_nodes = int(numbers.max()) + 1
    edges = coo_array((np.ones(len(groups), np.int8), (contents, numbers)), shape=(num_nodes, num_nodes))
    component = connected_components(edges, directed=False)[1][contents]
    # The first image of a unit, in the order of contents, numbers it.
    order = np.argsort(contents, kind="stable")
    _, first, inverse = np.unique(component[order], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    units = np.empty(len(groups), np.int64)
    units[order] = rank[inverse.reshape(-1)]
    return units


class Deal:
    """Units on their way to parts. Part p is to get the share `shares[p]` of each class and of all images."""

    def __init__(self, units: np.ndarray, labels: np.ndarray, num_classes: int, shares: Sequence[float]):
        self.shares = np.array(shares, float)
        self.num_units = int(units.max()) + 1
        self.num_classes = num_classes
        # The classes in each unit, unit after unit, and the number of its images of each.
        pairs, self.counts = np.unique(units * num_classes + labels, return_counts=True)
        self.owners, self.classes = np.divmod(pairs, num_classes)
        self.starts = np.searchsorted(self.owners, np.arange(self.num_units + 1))
        self.sizes = np.bincount(units, minlength=self.num_units)
        self.num_images = len(units)
        self.totals = np.maximum(1, np.bincount(labels, minlength=num_classes))
        self.units_of_class = np.bincount(self.classes, minlength=num_classes)
        self.part = np.full(self.num_units, -1)
        self.filled = np.zeros((num_classes, len(shares)), np.int64)  # images of each class in each part
        self.sums = np.zeros(len(shares), np.int64)  # images in each part

    def content(self, unit: int) -> tuple[np.ndarray, np.ndarray]:
        """The classes in a unit, and the number of its images of each."""
        where = slice(self.starts[unit], self.starts[unit + 1])
        return self.classes[where], self.counts[where]

    def put(self, unit: int, part: int) -> None:
        """Give a unit to a part, away from the one that has it."""
        classes, counts = self.content(unit)
        if self.part[unit] >= 0:
            self.filled[classes, self.part[unit]] -= counts
            self.sums[self.part[unit]] -= self.sizes[unit]
        self.filled[classes, part] += counts
        self.sums[part] += self.sizes[unit]
        self.part[unit] = part

    # --- one after another, large before small ---

    def deal_large(self) -> None:
        """Units of several images, those that are most of a class first, each to the part that lacks it most.

        Then each again, given where the others are, while that improves anything.
        """
        weight = np.bincount(self.owners, (self.counts / self.totals[self.classes]) ** 2, self.num_units)
        order = np.argsort(-weight, kind="stable")
        order = order[(self.sizes[order] > 1) & (self.part[order] < 0)]
        for _ in range(1 + min(MOST_ROUNDS, MOST_DEALT_AGAIN // max(1, len(order)))):
            before = self.part.copy()
            for unit in order.tolist():
                self.put(unit, self._find_part(unit))
            if (self.part == before).all():
                break

    def _find_part(self, unit: int) -> int:
        """Where a unit adds least to the squared distances from the shares: of its classes, and of all images."""
        classes, counts = self.content(unit)
        size = self.sizes[unit]
        step = counts / self.totals[classes] ** 2
        # Twice what is there, times what is added; and the square of what is added.
        growth = 2 * (step @ self.filled[classes] + self.sums * (size / self.num_images**2))
        added = step @ counts + (size / self.num_images) ** 2
        if self.part[unit] >= 0:
            growth[self.part[unit]] -= 2 * added
        return int(np.argmin((growth + added) / self.shares))

    def deal_single(self) -> None:
        """Single images, class by class, to where their class is furthest below its share."""
        alone = np.flatnonzero((self.sizes == 1) & (self.part < 0))
        label = self.classes[self.starts[alone]]
        alone = alone[np.argsort(label, kind="stable")]
        ends = np.cumsum(np.bincount(label, minlength=self.num_classes))
        for number in range(self.num_classes):
            members = alone[ends[number - 1] if number else 0 : ends[number]]
            if not len(members):
                continue
            given = fill_up(self.filled[number], self.sums, self.shares, len(members))
            self.part[members] = _take_turns(given)
            self.filled[number] += given
            self.sums += given

    # --- what must not be missing ---

    def spread_classes(self, may_move: np.ndarray) -> None:
        """Move units, small ones first, so that a class in two or more units is in two or more parts where it can be.

        No class becomes scarcer, and no part empty. `may_move` (U,): the others stay.
        """
        num_parts = (self.filled > 0).sum(axis=1)
        for number in np.flatnonzero((num_parts == 1) & (self.units_of_class > 1)).tolist():
            members = self.owners[self.classes == number]
            members = members[may_move[members]]
            small_first = members[np.argsort(self.sizes[members], kind="stable")].tolist()
            goals = np.argsort(self.sums / self.shares, kind="stable").tolist()
            moves = ((unit, goal) for unit in small_first for goal in goals if self._can_move(unit, goal))
            for unit, goal in itertools.islice(moves, 1):
                self.put(unit, goal)

    def _can_move(self, unit: int, goal: int) -> bool:
        """Whether every class stays in as many parts, or in two, and the part that loses the unit has others."""
        classes, counts = self.content(unit)
        home = self.part[unit]
        after = self.filled[classes]
        before = (after > 0).sum(axis=1)
        after[:, home] -= counts
        after[:, goal] += counts
        is_kept = (after > 0).sum(axis=1) >= np.minimum(2, before)
        return bool(goal != home and is_kept.all() and self.sums[home] > self.sizes[unit])


def fill_up(level: np.ndarray, total: np.ndarray, shares: np.ndarray, number: int) -> np.ndarray:
    """How many of `number` each part gets, so that levels come as near to proportion as they can. (P,) integers.

    `level` (P,): what the parts have. What is left after rounding goes to where the remainder is largest, and
    among equals to the smallest `total`.
    """
    # Water into vessels: those that are below the common height are filled up to it.
    height = level / shares
    order = np.argsort(height, kind="stable")
    room = np.cumsum(shares[order]) * height[order] - np.cumsum(level[order])
    num_open = int(np.searchsorted(room, number, side="left"))
    opened = order[: max(1, num_open)]
    common = (number + level[opened].sum()) / shares[opened].sum()
    wanted = np.zeros(len(level))
    wanted[opened] = np.maximum(0, common * shares[opened] - level[opened])
    # Whole images.
    given = np.floor(wanted + 1e-9).astype(np.int64)
    rest = number - int(given.sum())
    places = np.lexsort((np.arange(len(level)), total / shares, -np.round(wanted - given, 9)))
    given[places[:rest]] += 1
    return given


def _take_turns(given: np.ndarray) -> np.ndarray:
    """`given` (P,) -> (sum,) parts, each part at even distances, so that neighbours go to different parts."""
    parts = np.repeat(np.arange(len(given)), given)
    place = np.concatenate([(np.arange(count) + 0.5) / count for count in given.tolist() if count])
    return parts[np.argsort(place, kind="stable")]


def deal_folds(units: np.ndarray, labels: np.ndarray, num_classes: int, k: int) -> np.ndarray:
    """(N,) the part, from 1 on, of each image: k parts of equal size, as far as units allow."""
    deal = Deal(units, labels, num_classes, [1 / k] * k)
    deal.deal_large()
    deal.deal_single()
    deal.spread_classes(np.ones(deal.num_units, bool))
    return deal.part[units] + 1


def set_aside(units: np.ndarray, labels: np.ndarray, num_classes: int, fraction: float) -> np.ndarray:
    """(N,) True for about `fraction` of each class. A class that is in one unit alone is not set aside.

    All are False when every unit is needed by a class that has no other.
    """
    deal = Deal(units, labels, num_classes, [1 - fraction, fraction])
    # What must stay.
    is_alone = deal.units_of_class == 1
    stays = np.zeros(deal.num_units, bool)
    stays[deal.owners[is_alone[deal.classes]]] = True
    for unit in np.flatnonzero(stays).tolist():
        deal.put(unit, 0)
    # The others.
    deal.deal_large()
    deal.deal_single()
    deal.spread_classes(~stays)
    # A class that could not be spread stays, whole.
    for number in np.flatnonzero(deal.filled[:, 0] == 0).tolist():
        for unit in deal.owners[deal.classes == number].tolist():
            deal.put(unit, 0)
    return (deal.part == 1)[units]


# --- in words -------------------------------------------------------------------------------------------


def describe_folds(parts: np.ndarray, labels: np.ndarray, classes: Sequence[str], k: int) -> str:
    """How even k parts of whole groups are: their sizes, and the class that is least even."""
    sizes = np.bincount(parts, minlength=k + 1)[1:]
    counts = np.bincount(labels * k + parts - 1, minlength=len(classes) * k).reshape(-1, k)
    uneven = int(np.argmax(np.ptp(counts, axis=1) / np.maximum(1, counts.sum(axis=1))))
    least, most = counts[uneven].min(), counts[uneven].max()
    text = f"groups stay whole: {sizes.min()} to {sizes.max()} images in each of {k} parts"
    return text + (f", {least} to {most} of class {classes[uneven]!r}" if most > least + 1 else "")


def describe_share(
    is_apart: np.ndarray, labels: np.ndarray, classes: Sequence[str], fraction: float, split: str = "valid"
) -> str:
    """How near a part of whole groups comes to its fraction: of all images, and of the class furthest from it."""
    totals = np.maximum(1, np.bincount(labels, minlength=len(classes)))
    counts = np.bincount(labels[is_apart], minlength=len(classes))
    furthest = int(np.argmax(np.abs(counts / totals - fraction)))
    text = (
        f"groups stay whole: {split} has {is_apart.mean():.1%} of the images where {split}_fraction is {fraction:.1%}"
    )
    text += f", and {counts[furthest]} of {totals[furthest]} of class {classes[furthest]!r}"
    absent = [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]
    return text + (f"; no images of {', '.join(absent[:5])}: no group can be spared" if absent else "")
