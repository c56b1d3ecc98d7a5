"""Which folders of a tree are experiments. Made for tens of thousands of them: one listing per folder."""

import os
import re
from pathlib import Path
from typing import Any

from include import (
    ATTEMPTS,
    CHECKPOINTS,
    EVALUATION,
    HISTORY_JSON,
    META,
    METRICS_BEST,
    METRICS_LAST,
    PARAMS,
    RECORD,
    RESOLVED,
    STATUS,
    TENSORBOARD,
    WEIGHTS,
)
from utils import UserError

OF_THE_KIT = {RECORD, ATTEMPTS, CHECKPOINTS, TENSORBOARD, WEIGHTS, EVALUATION}
SIGNS = {PARAMS, HISTORY_JSON, METRICS_BEST, METRICS_LAST}  # a folder with one of them is an experiment


def natural(text: str) -> list[Any]:
    """A sorting key: "run_2" before "run_10"."""
    parts: list[Any] = re.split(r"(\d+)", text)  # text and digits in turn, so that like is compared with like
    parts[1::2] = map(float, parts[1::2])
    return parts


class Walk:
    """One walk through the tree below `top`. Links are noted and not followed."""

    def __init__(self, top: str):
        self.top = top
        self.seen: set[str] = set()  # every folder that was listed
        self.found: list[str] = []  # experiments
        self.odd: dict[str, str] = {}  # a place that holds nothing or cannot be read -> the folder that it is in
        self.links: list[str] = []
        waiting = [top]
        while waiting:
            waiting += self._list(waiting.pop())

    def _list(self, path: str) -> list[str]:
        """Note what `path` is; the folders to go on to."""
        self.seen.add(path)
        try:
            with os.scandir(path) as entries:
                names, folders, links = _sort_entries(entries)
        except OSError:
            if path == self.top:
                raise
            self.odd[path] = os.path.dirname(path)
            return []
        is_experiment = _is_experiment(path, names)
        if is_experiment:
            self.found.append(path)
        elif not names and path != self.top:
            self.odd[path] = os.path.dirname(path)
        skip = OF_THE_KIT if is_experiment else ()
        self.links += [f"{path}/{name}" for name in links if name not in skip]
        return [f"{path}/{name}" for name in folders if name not in skip and not name.startswith((".", "__"))]

    def linked(self) -> list[str]:
        """Links to an experiment folder that is not in the tree itself, one for each; links to nowhere are odd."""
        real_top, taken = os.path.realpath(self.top), set()
        experiments = []
        for link in sorted(self.links):
            real = os.path.realpath(link)
            inside = real == real_top or real.startswith(real_top + os.sep)
            if real in taken or (inside and self.top + real[len(real_top) :] in self.seen):
                continue
            taken.add(real)
            try:
                if _is_experiment(link, set(os.listdir(link))) and not real_top.startswith(real + os.sep):
                    experiments.append(link)
            except (FileNotFoundError, OSError):
                self.odd[link] = os.path.dirname(link)
        return experiments


def _sort_entries(entries: Any) -> tuple[set[str], list[str], list[str]]:
    """(all names, names of folders, names of links to folders or to nowhere)"""
    names, folders, links = set(), [], []
    for entry in entries:
        names.add(entry.name)
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.name)
        elif entry.is_symlink() and not os.path.isfile(entry.path):
            links.append(entry.name)
    return names, folders, links


def _is_experiment(path: str, names: set[str]) -> bool:
    if not names.isdisjoint(SIGNS):
        return True
    return RECORD in names and any(os.path.exists(f"{path}/{name}") for name in (STATUS, RESOLVED, META))


def find_folders(parent: Path) -> list[Path]:
    """The experiment folders in the tree under `parent`, without those that only hold others (a search).

    A link to an experiment elsewhere counts, once. Places that hold nothing, lead nowhere or cannot be read are
    among them: read_rows says what is the matter. UserError when there is no such folder.
    """
    top = str(parent)
    try:
        walk = Walk(top)
        found = [*walk.found, *walk.linked()]
    except OSError as error:
        raise UserError(f"{parent}: {'no such folder' if not parent.is_dir() else error.strerror}") from None
    holders: set[str] = set()
    for path in found:
        above = os.path.dirname(path)
        while above not in holders and len(above) >= len(top):
            holders.add(above)
            above = os.path.dirname(above)
    found = [path for path in found if path not in holders or os.path.exists(f"{path}/{RESOLVED}")]
    trained = set(found) - holders
    found += [path for path, above in walk.odd.items() if above not in trained]
    return [Path(path) for path in sorted(found, key=natural)]
