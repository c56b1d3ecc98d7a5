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
    RECORD,
    TENSORBOARD,
    TRAIN_HISTORY_PNG,
    TRAIN_LOG,
    WEIGHTS,
)

OUTPUTS = (
    HISTORY_JSON, HISTORY_CSV, METRICS_BEST, METRICS_LAST, METRICS_TEST, EVALUATION, TRAIN_LOG,
    TRAIN_HISTORY_PNG, BATCH_PNG, LR_FIND_PNG, WEIGHTS, CHECKPOINTS, TENSORBOARD, RECORD, "report.html",
)  # fmt: skip


def list_outputs(folder: Path) -> list[Path]:
    """What the kit wrote into `folder`, with names that are there."""
    present = [folder / name for name in OUTPUTS if os.path.lexists(folder / name)]
    present += sorted(folder.glob("evaluation_*")) + sorted(folder.glob("metrics_*_*.json"))
    return list(dict.fromkeys(present))


def move_aside(folder: Path) -> Path | None:
    """Move an earlier attempt to attempts/N; what the user wrote stays. None when there is nothing to move."""
    present = list_outputs(folder)
    if not present:
        return None
    numbers = [int(path.name) for path in (folder / ATTEMPTS).glob("*") if path.name.isdigit()]
    target = folder / ATTEMPTS / str(max(numbers, default=0) + 1)
    target.mkdir(parents=True)
    for path in present:
        os.rename(path, target / path.name)
    return target
