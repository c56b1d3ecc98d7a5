"""Keys that are valid and do nothing in this run: said at its start. Add one: a line in NO_EFFECT."""

from typing import Any

from params import Params

NO_EFFECT: list[tuple[str, Any, str]] = [
    ("scheduler", lambda p: p.lr_schedule is not None, "lr_schedule overrides it"),
    *((name, lambda p: p.scheduler != "one_cycle" or p.lr_schedule, "it belongs to scheduler one_cycle")
      for name in ("div_factor", "pct_start")),
    ("warmup", lambda p: p.lr_schedule or p.scheduler == "one_cycle", "one_cycle and lr_schedule bring their own"),
    ("momentum", lambda p: p.optimizer in ("adam", "adamw"), "it belongs to sgd and rmsprop"),
    ("label_smoothing", lambda p: p.loss == "focal", "it belongs to loss cross_entropy"),
    ("cuda", lambda p: p.device != "auto", "device says it already"),
    ("arch_args", lambda p: not p.arch_args, "it is empty"),
]  # fmt: skip


def no_effect(params: Params) -> list[str]:
    """One line per given key that does nothing in this run."""
    return [f"{name}: {reason}" for name, applies, reason in NO_EFFECT if name in params.given and applies(params)]
