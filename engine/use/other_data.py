"""Evaluation on another dataset than the one a folder was trained with: told apart by content, and kept apart.

A moved or copied dataset is the same. Numbers of another one go to other_data/, so that no table shows them as the
folder's own, and do not count as looks at its test split; a sealed test split is not looked at with them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from engine.use.frozen import compute_logits, knows_logits
from engine.use.looks import HOW, is_sealed
from engine.use.request import EvaluationRequest
from folder.aside import OTHER_DATA
from folder.folder import Folder
from utils import UserError


def is_trained_data(folder: Folder, request: EvaluationRequest, fingerprint: Callable[[str], str]) -> bool:
    """True when the dataset that is measured is the one that `folder` was trained with.

    `fingerprint`: of a split of this dataset, by the code of this tree. The training never opened test, so for test one
    of the other two has to be the same. Where no fingerprint was recorded: True.
    """
    recorded = folder.resolved()["pinned"]["data"]
    compared = (
        [request.split] if request.split in recorded else [name for name in ("valid", "train") if name in recorded]
    )
    if not compared or any(recorded[name] == fingerprint(name) for name in compared):
        return True
    # The way in which the tree splits may have changed since the training: then the folder's copy of the code decides.
    if request.code == "tree" or request.split != "test" or not knows_logits(folder.path):
        return False
    by_copy = compute_logits(folder.path, request.words(folder, compared[0]), {})
    return by_copy.fingerprint == recorded[compared[0]]


def check_seal(folder: Folder, data_dir: Path) -> None:
    """UserError when the test split of the folder is sealed: `data_dir` holds other data than it was trained with."""
    if is_sealed(folder):
        raise UserError(
            f"{folder.path}: {HOW}, at the data of the training; {data_dir} holds other images or labels in train and "
            f"valid. The look is not spent: give the place of that data with --data_dir ({folder.meta()['data_dir']} "
            "when it was trained)"
        )


def place_for(folder: Path, data_dir: Path, fingerprint: str) -> Path:
    """The folder for what is measured on `data_dir`, by its name and content."""
    name = re.sub(r"[^\w.-]+", "_", data_dir.absolute().name).strip(".") or "data"
    return folder / OTHER_DATA / f"{name[:60]}_{fingerprint[:8]}"


def describe(folder: Path, data_dir: Path, split: str) -> str:
    """One line that says whose numbers these are."""
    return (
        f"other data: {data_dir} is not what {folder} was trained with, by the content of its images; these numbers "
        f"are not the folder's {split} metrics, and no table shows them as such"
    )
