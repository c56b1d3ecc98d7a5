"""What a start is asked to change of a run that goes on: parameters compared, and the words that messages suggest."""

from __future__ import annotations

from collections.abc import Sequence

from folder.provenance import same
from params import DEFAULTS, Params
from utils import JsonObject

# Parameters that may change between two starts of a run: they decide how it is executed, not its result.
EXECUTION_KEYS = {"num_workers", "observers", "save_summary_steps", "keep_last", "checkpoint_minutes", "cache"}
# Parameters that are compared in another way (data by its content, num_epochs as a length), or belong to a search.
NOT_COMPARED = {"data_dir", "hyper_search", "search", "num_epochs"}

# Parameters that no --accept changes within a run: the saved state, the history or the decoded images hang on them.
FIXED = {"arch", "optimizer", "ema", "im_sz", "normalize", "n_clas", "best_metric"}


def list_fixed(changes: Sequence[str]) -> list[str]:
    """Those of `changes`, as changed_params gives them, that no --accept allows."""
    return [change for change in changes if change.partition(" ")[0] in FIXED]


def changed_params(new: Params, resolved: JsonObject, pinned: JsonObject) -> list[str]:
    """ "key old -> new" for every parameter that decides the result and is not what ran.

    A key that the run's version of the kit did not know had its default.
    """
    automatic = pinned.get("automatic", {})
    defaults = DEFAULTS.resolved()
    changes = []
    for key, value in new.resolved().items():
        old = resolved.get(key, defaults[key])
        if key in EXECUTION_KEYS | NOT_COMPARED or same(old, value):
            continue
        if key in automatic and same(automatic[key], value):
            continue
        changes.append(f"{key} {old!r} -> {value!r}")
    return changes


def fill_pinned(params: Params, resolved: JsonObject, pinned: JsonObject) -> Params:
    """`params` with every automatic choice of the first start in its place."""
    automatic = pinned.get("automatic", {})
    now = params.resolved()
    return params.replace(**{key: resolved[key] for key, auto in automatic.items() if same(now[key], auto)})


def restart_words(argv: Sequence[str]) -> list[str]:
    """The command line without the flags that make no sense at a start, to suggest one."""
    kept = []
    words = iter(drop_flags(argv))
    for word in words:
        if word == "--extend":
            next(words, None)  # its value
        elif not word.startswith("--extend="):
            kept.append(word)
    return ["python", "train.py", *kept]


def drop_flags(argv: Sequence[str]) -> list[str]:
    """The command line without the flags that a suggestion adds itself."""
    kept = []
    words = iter(argv)
    for word in words:
        if word == "--accept":
            next(words, None)  # its value
        elif word not in ("--restart", "--resume") and not word.startswith("--accept="):
            kept.append(word)
    return kept
