"""Which folders of a tree are experiments. Quick for tens of thousands: each folder is listed once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from include import (
    ATTEMPTS,
    CHECKPOINTS,
    EVALUATION,
    HISTORY_JSON,
    META,
    METRICS_BEST,
    METRICS_LAST,
    MONITORS,
    PARAMS,
    RECORD,
    RESOLVED,
    STATUS,
    TENSORBOARD,
    WEIGHTS,
)
from utils import UserError

# Folders below an experiment in which there is no other one.
NOT_SEARCHED = {RECORD, ATTEMPTS, CHECKPOINTS, TENSORBOARD, WEIGHTS, EVALUATION, MONITORS, "wandb"}
EXPERIMENT_FILES = {PARAMS, HISTORY_JSON, METRICS_BEST, METRICS_LAST}  # a folder with one of them is an experiment

NaturalKey: TypeAlias = list[str | float]


def natural_key(text: str) -> NaturalKey:
    """A sorting key: "run_2" before "run_10"."""
    parts = re.split(r"(\d+)", text)  # text and digits alternate, so that only like is compared with like
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


class TreeWalk:
    """One walk through the tree below `top`. Links are collected and not followed."""

    def __init__(self, top: str):
        self.top = top
        self.listed: set[str] = set()  # every folder that was listed
        self.experiments: list[str] = []
        self.unusable: dict[str, str] = {}  # an empty or unreadable folder, or a broken link -> the folder above it
        self.links: list[str] = []
        waiting = [top]
        while waiting:
            waiting += self._list(waiting.pop())

    def _list(self, path: str) -> list[str]:
        """Record what `path` is -> the folders in it that are to be listed."""
        self.listed.add(path)
        try:
            with os.scandir(path) as entries:
                names, folders, links = _sort_entries(entries)
        except OSError:
            if path == self.top:
                raise
            self.unusable[path] = os.path.dirname(path)
            return []
        is_experiment = _is_experiment(path, names)
        if is_experiment:
            self.experiments.append(path)
        elif not names and path != self.top:
            self.unusable[path] = os.path.dirname(path)
        skip = NOT_SEARCHED if is_experiment else set()
        self.links += [f"{path}/{name}" for name in links if name not in skip]
        return [f"{path}/{name}" for name in folders if name not in skip and not name.startswith((".", "__"))]

    def linked_experiments(self) -> list[str]:
        """One link for each experiment that only a link leads to. Broken links are added to `unusable`."""
        real_top = os.path.realpath(self.top)
        taken: set[str] = set()
        experiments = []
        for link in sorted(self.links):
            real = os.path.realpath(link)
            is_inside = real == real_top or real.startswith(real_top + os.sep)
            if real in taken or (is_inside and self.top + real[len(real_top) :] in self.listed):
                continue
            taken.add(real)
            try:
                if _is_experiment(link, set(os.listdir(link))) and not real_top.startswith(real + os.sep):
                    experiments.append(link)
            except OSError:
                self.unusable[link] = os.path.dirname(link)
        return experiments


def _sort_entries(entries: Iterable[os.DirEntry[str]]) -> tuple[set[str], list[str], list[str]]:
    """(all names, names of folders, names of links to a folder or to nothing)"""
    names: set[str] = set()
    folders, links = [], []
    for entry in entries:
        names.add(entry.name)
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.name)
        elif entry.is_symlink() and not os.path.isfile(entry.path):
            links.append(entry.name)
    return names, folders, links


def _is_experiment(path: str, names: set[str]) -> bool:
    if not names.isdisjoint(EXPERIMENT_FILES):
        return True
    return RECORD in names and any(os.path.exists(f"{path}/{name}") for name in (STATUS, RESOLVED, META))


def find_folders(parent: Path) -> list[Path]:
    """The experiment folders in the tree under `parent`, except those that only hold others (a search's folder).

    A link to an experiment outside the tree counts once. Empty folders, unreadable ones and broken links are included:
    read_rows says what is wrong with them. UserError when `parent` cannot be listed.
    """
    top = str(parent)
    try:
        walk = TreeWalk(top)
        experiments = [*walk.experiments, *walk.linked_experiments()]
    except OSError as error:
        raise UserError(f"{parent}: {'no such folder' if not parent.is_dir() else error.strerror}") from None
    holders = _folders_above(experiments, top)
    # a folder with experiments in it counts only if it was trained itself
    paths = [path for path in experiments if path not in holders or os.path.exists(f"{path}/{RESOLVED}")]
    # unusable folders inside a trained experiment are not reported
    trained = set(paths) - holders
    paths += [path for path, above in walk.unusable.items() if above not in trained]
    return [Path(path) for path in sorted(paths, key=natural_key)]


def _folders_above(paths: Iterable[str], top: str) -> set[str]:
    """Every folder between `top` and one of `paths`."""
    holders: set[str] = set()
    for path in paths:
        above = os.path.dirname(path)
        while above not in holders and len(above) >= len(top):
            holders.add(above)
            above = os.path.dirname(above)
    return holders
