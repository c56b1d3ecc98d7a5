"""Keys that have no effect in a run because of the values of other keys."""

from collections.abc import Callable
from typing import Any

from params.keys import Keys


def _flips(augment: str | list[str | dict[str, Any]]) -> bool:
    """True when a preset or a list of transforms flips; a preset that is not known here may flip."""
    if isinstance(augment, str):
        return augment not in ("none", "crop")
    return any((item if isinstance(item, str) else item["name"]) == "HorizontalFlip" for item in augment)


def _is_one_cycle(keys: Keys) -> bool:
    return not keys.lr_schedule and keys.scheduler == "one_cycle"


def _is_too_patient(keys: Keys) -> bool:
    return keys.early_stopping is not None and keys.early_stopping.patience >= keys.num_epochs


# (keys, whether they have no effect, why)
_RULES: list[tuple[str, Callable[[Keys], object], str]] = [
    ("scheduler", lambda keys: keys.lr_schedule, "lr_schedule takes its place"),
    ("div_factor pct_start", lambda keys: keys.lr_schedule, "lr_schedule takes the place of one_cycle"),
    (
        "div_factor pct_start",
        lambda keys: not keys.lr_schedule and not _is_one_cycle(keys),
        "only scheduler one_cycle has it",
    ),
    ("warmup", lambda keys: keys.warmup and keys.lr_schedule, "lr_schedule states every rate"),
    ("warmup", lambda keys: keys.warmup and _is_one_cycle(keys), "one_cycle has its own rise, pct_start"),
    (
        "learning_rate",
        lambda keys: keys.lr_schedule and not isinstance(keys.learning_rate, list),
        "lr_schedule states every rate",
    ),
    (
        "momentum",
        lambda keys: keys.optimizer not in ("sgd", "rmsprop"),
        "only sgd and rmsprop take it; for other optimizers use optimizer_args",
    ),
    ("momentum", lambda keys: "momentum" in keys.optimizer_args, "optimizer_args has another momentum"),
    (
        "label_smoothing",
        lambda keys: keys.label_smoothing and keys.loss == "focal",
        "only loss cross_entropy has it",
    ),
    (
        "alternate_flip",
        lambda keys: keys.alternate_flip and not _flips(keys.augment),
        "augment has no HorizontalFlip",
    ),
    ("valid_fraction", lambda keys: keys.fold, "fold decides which images validate"),
    (
        "progressive",
        lambda keys: keys.progressive and keys.progressive.initial_scale == 1,
        "initial_scale 1 is full size",
    ),
    ("cuda", lambda keys: keys.device != "auto", "device says where to compute"),
    ("early_stopping", _is_too_patient, "its patience is as long as the run"),
]


def explain_no_effect(keys: Keys, given: frozenset[str]) -> list[str]:
    """One line per key in `given` that has no effect."""
    rules = [(name, is_idle, reason) for names, is_idle, reason in _RULES for name in names.split()]
    return [f"{name}: {reason}" for name, is_idle, reason in rules if name in given and is_idle(keys)]
