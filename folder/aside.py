"""Moving an earlier attempt out of the way, for --restart: nothing is ever deleted."""

import os
from pathlib import Path

from include import (
    ATTEMPTS,
    BATCH_PNG,
    CHECKPOINTS,
    EVALUATION,
    HISTORY_CSV,
    HISTORY_JSON,
    LR_FIND_PNG,
    METRICS_BEST,
    METRICS_LAST,
    METRICS_TEST,
    MONITORS,
    RECORD,
    TENSORBOARD,
    TRAIN_HISTORY_PNG,
    TRAIN_LOG,
    WEIGHTS,
)
from utils import sync_folder

OTHER_DATA = "other_data"  # what evaluate.py measured on other data than that of the training
# In the order in which they are moved: first what a start or evaluate.py would go on from, last what proves the run.
OUTPUTS = (
    CHECKPOINTS, WEIGHTS, HISTORY_JSON, HISTORY_CSV, METRICS_BEST, METRICS_LAST, METRICS_TEST, EVALUATION, TENSORBOARD,
    TRAIN_HISTORY_PNG, BATCH_PNG, LR_FIND_PNG, TRAIN_LOG, MONITORS, "wandb", "report.html", "export", OTHER_DATA,
)  # fmt: skip
UNFINISHED = "."  # begins the name of an attempt in attempts/ until everything of it is there


def list_outputs(folder: Path) -> list[Path]:
    """What the kit wrote into `folder`, in the order in which it is moved."""
    present = [folder / name for name in OUTPUTS if os.path.lexists(folder / name)]
    present += sorted(folder.glob("evaluation_*")) + sorted(folder.glob("metrics_*_*.json"))
    present += [folder / RECORD] if os.path.lexists(folder / RECORD) else []
    return list(dict.fromkeys(present))


def find_half_moved(folder: Path) -> Path | None:
    """The attempt that a killed --restart had begun to move: all outputs still in the folder belong to it."""
    names = (folder / ATTEMPTS).glob(f"{UNFINISHED}*")
    return next((path for path in names if path.name.removeprefix(UNFINISHED).isdigit()), None)


def is_half_moved(folder: Path) -> bool:
    return find_half_moved(folder) is not None


def move_aside(folder: Path) -> Path | None:
    """Move an earlier attempt to attempts/N; what the user wrote stays. None when there is nothing to move.

    The attempt has a name of its own until it is whole: after a kill at any instant, the next start moves the rest to
    it before it writes anything. The folder must be locked.
    """
    present = list_outputs(folder)
    target = find_half_moved(folder)
    if not present and not target:
        return None
    if target is None:
        numbers = [int(path.name) for path in (folder / ATTEMPTS).glob("*") if path.name.isdigit()]
        target = folder / ATTEMPTS / f"{UNFINISHED}{max(numbers, default=0) + 1}"
        target.mkdir(parents=True)
    for path in present:
        name = path.name
        while os.path.lexists(target / name):  # written since the kill
            name += "_later"
        os.rename(path, target / name)
    whole = target.with_name(target.name.removeprefix(UNFINISHED))
    os.rename(target, whole)
    sync_folder(whole.parent)
    return whole
