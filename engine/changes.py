"""The parameters that a start asks for, what they change of a run that goes on, and the words that messages suggest."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import params as params_module
from folder.folder import Folder
from folder.provenance import same
from include import PARAMS
from params import DEFAULTS, Params
from params.names import use_canonical_names
from utils import JsonObject, UserError, command

OVERFIT_STEPS = 300  # of --overfit, at most
# Parameters that may change between two starts of a run: they decide how it is executed, not its result.
EXECUTION_KEYS = {"num_workers", "observers", "save_summary_steps", "keep_last", "checkpoint_minutes", "cache"}
# Parameters that are compared in another way (data by its content, num_epochs as a length), or belong to a search.
NOT_COMPARED = {"data_dir", "hyper_search", "search", "num_epochs"}

# Parameters that no --accept changes within a run: the saved state, the history or the decoded images hang on them.
FIXED = {"arch", "optimizer", "ema", "im_sz", "normalize", "n_clas", "best_metric", "layer_decay"}


def load_params(
    folder: Folder, base: str | None, overrides: JsonObject, has_run: bool
) -> tuple[Params, JsonObject | None, Sequence[str]]:
    """The parameters, the params.json to write when `base` starts a new folder, and remarks.

    A run whose base is gone, as when the folder was moved, has the parameters that it recorded.
    """
    path = folder.path / PARAMS
    # Without --base: what the folder says.
    if not base:
        if not path.exists():
            raise UserError(
                f"{path}: no such file. An experiment is a folder with a params.json ({{}} is enough); "
                f"or start from another one: --base OTHER_FOLDER"
            )
        if has_run and (lost := find_lost_base(path)):
            remark = f"{path}: base: there is no {lost}; its parameters are those that were recorded"
            return recorded_params(folder, overrides), None, (remark,)
        return params_module.load(folder.path, overrides), None, ()
    # With it: a params.json that names the base; the same command again finds it written.
    if not Path(base).exists():
        raise UserError(f"--base {base}: no such experiment folder or JSON file")
    written = {"base": params_module.relative_path(Path(base), folder.path), **overrides}
    if not path.exists():
        return params_module.from_written(written, folder.path), written, ()
    if params_module.read(path) != written:
        raise UserError(
            f"--base: {path} exists already and holds other parameters; leave --base out, or give a new --model_dir"
        )
    return params_module.load(folder.path, overrides), None, ()


def find_lost_base(file: Path) -> str:
    """The file of the first `base`, of `file` or of its bases, that does not exist; "" when there is none."""
    seen = set()
    while file.is_file() and file not in seen:
        seen.add(file)
        base = params_module.read(file).get("base")
        if not isinstance(base, str) or not base:
            return ""
        target = file.parent / base
        file = target / PARAMS if target.is_dir() else target
        if not file.is_file():
            return str(file)
    return ""


def recorded_params(folder: Folder, overrides: JsonObject) -> Params:
    """The parameters that a run recorded, with what its params.json says now and `overrides` in their place."""
    resolved = folder.resolved()
    automatic = resolved["pinned"].get("automatic", {})
    recorded = {key: value for key, value in resolved.items() if key != "pinned"} | automatic
    file = folder.path / PARAMS
    own = {key: value for key, value in params_module.read(file).items() if key != "base"}
    for changes in (use_canonical_names(own, str(file)), overrides):
        recorded = params_module.deep_merge(recorded, changes)
    return params_module.from_resolved(recorded, folder.path)


def describe_unread_data(path: Path, given: str | None, trained: str | None) -> list[str]:
    """A line where the experiment at `path` is done and `given` is another dataset folder than it was trained on."""
    if not given or not trained or not os.path.isdir(trained):
        return []
    if os.path.isdir(given) and os.path.samefile(given, trained):
        return []
    return [f"{given} was not looked at: {path} is done, and was trained on {trained}"]


def describe_hidden(path: Path, params: Params, overrides: JsonObject, now: JsonObject) -> list[str]:
    """A line on the recorded `overrides` that hide what the params.json at `path` says; `now`: given again.

    `params`: with all of them. So an edit of params.json that has no effect is not taken for one that has.
    """
    recorded = {key for key in overrides if key not in now}
    if not recorded:
        return []
    written = params_module.load(path).resolved()
    hidden = [
        f"{key} {value!r} (params.json: {written[key]!r})"
        for key, value in params.resolved().items()
        if key in recorded and not same(written[key], value)
    ]
    return [f"recorded command lines count, not params.json: {'; '.join(hidden)}"] if hidden else []


def describe_forgotten(params: Params, overrides: JsonObject, argv: Sequence[str]) -> list[str]:
    """A line on the recorded `overrides` of an earlier attempt that a start over, with `params`, does not repeat."""
    asked = params.resolved()
    forgotten = {
        key: value
        for key, value in overrides.items()
        if not same(asked.get(key), params_module.deep_merge({key: asked.get(key)}, {key: value})[key])
    }
    if not forgotten:
        return []
    words = [*restart_words(argv), *override_words(forgotten), "--restart"]
    return [
        f"command lines of the earlier attempt changed parameters, which is not repeated. With it: {command(*words)}"
    ]


def override_words(overrides: JsonObject) -> list[str]:
    """The words of a command line that mean `overrides`."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]


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


# --- for a test of the run ------------------------------------------------------------------------------


def overfit_params(params: Params, number: int) -> Params:
    """The parameters of --overfit: `number` images, in one batch if they fit, and nothing that holds the net back."""
    if number < 2:
        raise UserError(f"--overfit {number}: give at least 2 images")
    return params.replace(
        limit_train=number,
        batch_size=min(params.batch_size, number),
        augment="none",
        mixup=0.0,
        cutmix=0.0,
        label_smoothing=0.0,
        class_weights=None,
        sampler="shuffle",
        progressive=None,
        alternate_flip=0,
        ps=0.0,
        wd=0.0,
        ema=0.0,
        early_stopping=None,
        metrics=list(dict.fromkeys([*params.metrics, "accuracy"])),
        num_epochs=OVERFIT_STEPS,
    )
