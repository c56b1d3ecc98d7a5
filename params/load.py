"""params.json -> Params: the file, its bases under it, overrides of the command line over it, all of it checked."""

import os
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationError

from include import PARAMS
from params.jsonc import read_object, shorten
from params.keys import Keys
from params.mistakes import check_space, explain
from params.names import OWNED, use_canonical_names
from params.no_effect import explain_no_effect
from params.paths import mark_paths, move_paths
from utils import JsonObject, UserError

Layer = tuple[str, JsonObject]  # (where it was written, canonical keys)


class Params(Keys):
    """Everything a run depends on, frozen. Attributes have the canonical names; sections are objects."""

    _given: frozenset[str] = PrivateAttr(default=frozenset())
    _folder: Path = PrivateAttr(default=Path())

    @property
    def given(self) -> frozenset[str]:
        """The keys that were set explicitly: in the file, its bases or on the command line. Canonical names."""
        return self._given

    @property
    def folder(self) -> Path:
        """What relative paths in the parameters are relative to."""
        return self._folder

    def resolved(self) -> JsonObject:
        """Every key in the order of the table, as plain JSON values."""
        return self.model_dump(mode="json")

    def replace(self, **changes: Any) -> "Params":
        """A validated copy with `changes`; given and folder stay. UserError as `load`."""
        values = self.resolved() | use_canonical_names(changes, "changed parameters")
        return _build([("changed parameters", values)], self._folder, self._given)

    def no_effect(self) -> list[str]:
        """One line per given key that has no effect in this run."""
        return explain_no_effect(self, self._given)


# --- from files to Params ---------------------------------------------------------------------------


def load(path: Path | str, overrides: JsonObject | None = None) -> Params:
    """Params of an experiment folder or JSON file: its bases, then the file, then `overrides`; what comes later wins.

    Sections and dictionaries merge, lists and values replace. Where a file states a different `arch` (`optimizer`)
    than its base, the base's `arch_args` (`optimizer_args`) are dropped: they belong to the other one.
    UserError, one line, for the first mistake.
    """
    file = _find(Path(path))
    return _build(_all_layers(file, overrides), file.parent)


def load_written(path: Path | str, overrides: JsonObject | None = None) -> JsonObject:
    """What was written, without defaults: bases, file, `overrides` merged, by canonical keys. UserError as `load`."""
    return _merge_layers(_all_layers(_find(Path(path)), overrides))


def from_written(values: JsonObject, folder: Path, source: str = "") -> Params:
    """Params from values that will be written to `folder`/params.json. UserError as `load`."""
    return _build(_layers(values, folder / PARAMS, source), folder)


def from_resolved(values: JsonObject, folder: Path) -> Params:
    """Params from record/resolved.json, without its "pinned"; `given` is what differs from the defaults."""
    known = use_canonical_names(values, "resolved.json")
    params = _build([("resolved.json", known)], folder)
    params._given = frozenset(name for name in known if getattr(params, name) != getattr(DEFAULTS, name))
    return params


def read(path: Path) -> JsonObject:
    """One params file as written, without "$schema". UserError when it is not a JSON object."""
    values = read_object(path)
    values.pop("$schema", None)
    return values


def relative_path(path: Path, start: Path) -> str:
    """`path` as seen from the folder `start`."""
    return os.path.relpath(path.resolve(), start.resolve())


def _find(path: Path) -> Path:
    try:
        file = path / PARAMS if path.is_dir() else path
        if file.is_file():
            return file
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    raise UserError(f"{file}: no such file. An experiment is a folder with a {PARAMS} in it; {{}} is enough")


def _all_layers(file: Path, overrides: JsonObject | None) -> list[Layer]:
    layers = _layers(read(file), file)
    return [*layers, ("command line", use_canonical_names(overrides, "command line"))] if overrides else layers


def _layers(values: JsonObject, file: Path, source: str = "") -> list[Layer]:
    """`values`, the content of `file`, and its bases: the lowest first, paths relative to `file`."""
    layers: list[Layer] = []
    seen = [file.resolve()]
    prefix = ""  # from the folder of the first file to that of the current one
    source = source or str(file)
    while True:
        # put this file under the layers above it
        own = use_canonical_names({name: value for name, value in values.items() if name != "base"}, source)
        layers.insert(0, (source, move_paths(mark_paths(own, file.parent), prefix)))
        if "base" not in values:
            return layers
        # find its base
        base = values["base"]
        if not isinstance(base, str) or not base:
            raise UserError(f"{source}: base: {shorten(base)} given; possible: an experiment folder or a JSON file")
        try:
            target = file.parent / base if file.parent.is_dir() else (file.parent / base).resolve()
            is_folder = target.is_dir()
            file = _find(target)
        except (UserError, OSError):
            raise UserError(f"{source}: base: {shorten(base)}: no experiment folder or JSON file there") from None
        if file.resolve() in seen:
            raise UserError(f"{source}: base: {shorten(base)} leads back to {file.resolve().name}: a loop")
        # continue with the base
        seen.append(file.resolve())
        prefix = os.path.join(prefix, base if is_folder else os.path.dirname(base))
        values, source = read(file), str(file)


def deep_merge(under: JsonObject, over: JsonObject) -> JsonObject:
    """`over` over `under`; see `load` for what a different arch or optimizer does."""
    dropped = {args for name, args in OWNED.items() if name in over and over[name] != under.get(name, over[name])}
    return merge({name: value for name, value in under.items() if name not in dropped}, over)


def merge(under: JsonObject, over: JsonObject) -> JsonObject:
    """`over` over `under`: dictionaries merge, lists and values replace."""
    return under | {
        name: merge(under[name], value) if isinstance(value, dict) and isinstance(under.get(name), dict) else value
        for name, value in over.items()
    }


def _merge_layers(layers: list[Layer]) -> JsonObject:
    values: JsonObject = {name: Params.model_fields[name].default for name in OWNED}
    for _, over in layers:
        values = deep_merge(values, over)
    stated = {name for _, over in layers for name in over}
    return {name: value for name, value in values.items() if name in stated}


def _build(layers: list[Layer], folder: Path, given: frozenset[str] | None = None) -> Params:
    """Params of merged layers, checked. `given`: see Params.given; by default every key of the layers."""
    values = _merge_layers(layers)
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        path, text = explain(error)
        raise UserError(f"{_source(layers, path)}: {text}") from None
    params._given = frozenset(values) if given is None else given
    params._folder = folder
    for name, space in params.hyper_search.items():
        try:
            check_space(params, name, space)
        except ValueError as error:
            raise UserError(f"{_source(layers, ['hyper_search', name])}: {error}") from None
    return params


def _source(layers: list[Layer], path: list[str]) -> str:
    """Where the value at `path` was written: the topmost layer that has it."""
    for source, values in reversed(layers):
        if _has_path(values, path):
            return source
    return _source(layers, path[:-1])


def _has_path(values: object, path: list[str]) -> bool:
    for name in path:
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


DEFAULTS = Params()
