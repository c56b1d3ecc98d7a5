"""params.json -> Params: reading, `base`, overrides from the command line, and messages that name the nearest key.

May import include and utils; no torch: names that live in registries (nets, losses, ...) are strings here, and are
checked where they live. Start reading at keys.py (one line per key); jsonc.py reads lenient JSON.
"""

import os
import re
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationError

from include import PARAMS
from params.jsonc import decode_word, editor_schema, read_object, shorten, tables
from params.keys import (
    ALIASES,
    FREE,
    INTRO,
    NO_EFFECT,
    OWNED,
    PATHS,
    SECTIONS,
    Keys,
    check_space,
    explain,
    suggest,
)
from params.keys import SYNONYMS as SYNONYMS
from params.keys import Positive as Positive
from params.keys import Search as Search
from params.keys import Strict as Strict
from params.keys import Text as Text
from utils import UserError

Layer = tuple[str, dict[str, Any]]  # (where it was written, canonical keys)


class Params(Keys):
    """Everything a run depends on, frozen. Attributes have the canonical names; sections are objects."""

    _given: frozenset[str] = PrivateAttr(default=frozenset())
    _folder: Path = PrivateAttr(default=Path())

    @property
    def given(self) -> frozenset[str]:
        """The keys somebody wrote: in the file, its bases or on the command line. Canonical names."""
        return self._given

    @property
    def folder(self) -> Path:
        """What relative paths in the parameters are relative to."""
        return self._folder

    def resolved(self) -> dict[str, Any]:
        """Every key in the order of the table, as plain JSON values."""
        return self.model_dump(mode="json")

    def replace(self, **changes: Any) -> "Params":
        """A validated copy with `changes`; given and folder stay. UserError as `load`."""
        values = self.resolved() | canonical(changes, "changed parameters")
        return _build([("changed parameters", values)], self._folder, self._given)

    def no_effect(self) -> list[str]:
        """One line per given key that does nothing in this run."""
        return [f"{name}: {reason}" for names, idle, reason in NO_EFFECT for name in names.split()
                if name in self._given and idle(self)]  # fmt: skip


# --- from files to Params ---------------------------------------------------------------------------


def load(path: Path | str, overrides: dict[str, Any] | None = None) -> Params:
    """Params of an experiment folder or JSON file: its bases, the file, then `overrides`, each over the last.

    Sections and dictionaries merge, lists and values replace. Where another `arch` (`optimizer`) is stated
    than below, the `arch_args` (`optimizer_args`) from below are dropped: they belong to the other one.
    UserError, one line, for whatever is wrong.
    """
    file = _find(Path(path))
    return _build(_all_layers(file, overrides), file.parent)


def merged(path: Path | str, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """What was written: bases + file + `overrides`, canonical keys, no defaults. UserError as `load`."""
    return _merge_layers(_all_layers(_find(Path(path)), overrides))


def from_written(values: dict[str, Any], folder: Path, source: str = "") -> Params:
    """Params from what is going to be `folder`/params.json. UserError as `load`."""
    return _build(_layers(values, folder / PARAMS, source), folder)


def from_resolved(values: dict[str, Any], folder: Path) -> Params:
    """Params from record/resolved.json, without its "pinned"; `given` is what differs from the defaults."""
    known = canonical(values, "resolved.json")
    params = _build([("resolved.json", known)], folder)
    params._given = frozenset(name for name in known if getattr(params, name) != getattr(DEFAULTS, name))
    return params


def read(path: Path) -> dict[str, Any]:
    """One params file as it stands, without "$schema". UserError when it is no JSON object."""
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
    raise UserError(f"{file}: no such file. An experiment is a folder with a {PARAMS} in it; {{}} will do")


def _all_layers(file: Path, overrides: dict[str, Any] | None) -> list[Layer]:
    layers = _layers(read(file), file)
    return [*layers, ("command line", canonical(overrides, "command line"))] if overrides else layers


def _layers(values: dict[str, Any], file: Path, source: str = "") -> list[Layer]:
    """`values`, which stand in `file`, and its bases: the lowest first, paths relative to `file`."""
    layers: list[Layer] = []
    seen, prefix, source = [file.resolve()], "", source or str(file)
    while True:
        own = canonical({name: value for name, value in values.items() if name != "base"}, source)
        layers.insert(0, (source, moved(own, prefix)))
        if "base" not in values:
            return layers
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
        seen.append(file.resolve())
        prefix = os.path.join(prefix, base if is_folder else os.path.dirname(base))
        values, source = read(file), str(file)


def moved(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """`values` of one folder as another has to write them: the first is at `prefix` from there.

    Paths and FILE.py:NAME are relative to the folder that they stand in.
    """

    def move(value: Any, is_path: bool) -> Any:
        if isinstance(value, list):
            return [move(item, is_path) for item in value]
        if isinstance(value, dict):
            return {name: move(item, is_path or name in PATHS) for name, item in value.items()}
        is_path = isinstance(value, str) and value != "" and (is_path or re.search(r"\.py:\w+$", value) is not None)
        return os.path.join(prefix, value) if is_path and value not in ("best", "last") else value

    return {name: value if name in FREE else move(value, name in PATHS) for name, value in values.items()}


def deep_merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` over `under`; see `load` for what another arch or optimizer does."""
    other = {args for name, args in OWNED.items() if name in over and over[name] != under.get(name, over[name])}
    return _merge({name: value for name, value in under.items() if name not in other}, over)


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {name: _merge(under[name], value) for name, value in over.items()
            if isinstance(value, dict) and isinstance(under.get(name), dict)}  # fmt: skip
    return under | over | both


def _merge_layers(layers: list[Layer]) -> dict[str, Any]:
    values: dict[str, Any] = {name: Params.model_fields[name].default for name in OWNED}
    for _, over in layers:
        values = deep_merge(values, over)
    stated = {name for _, over in layers for name in over}
    return {name: value for name, value in values.items() if name in stated}


def canonical(values: dict[str, Any], source: str) -> dict[str, Any]:
    """`values` by canonical names, in hyper_search too. UserError for an unknown key, or one given twice."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if "." in name and name.split(".")[0] in SECTIONS:
            top, rest = name.split(".", 1)
            raise UserError(f"{source}: unknown key {shorten(name)}; write {shorten({top: {rest: value}})[1:-1]}")
        (real,) = key_path(name, source) if "." not in name else _unknown(source, name)
        if real in result:
            raise UserError(f"{source}: {real} and {_alias(real)} are the same key; give one of them")
        if real == "hyper_search" and isinstance(value, dict):
            value = _canonical_space(value, source)
        result[real] = value
    return result


def _canonical_space(space: dict[str, Any], source: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, values in space.items():
        path = key_path(name, f"{source}: hyper_search")
        if path[0] in ("hyper_search", "search", "data_dir"):
            raise UserError(f"{source}: hyper_search: {shorten(name)} cannot be searched")
        if (real := ".".join(path)) in result:
            raise UserError(f"{source}: hyper_search: {real} and {_alias(real)} are the same key; give one of them")
        result[real] = values
    return result


def _alias(name: str) -> str:
    return next((alias for alias, real in ALIASES.items() if real == name), name)


def key_path(name: str, source: str) -> list[str]:
    """The parts of a dotted name, canonical. UserError with the nearest key when there is none such."""
    top, *rest = name.split(".")
    top = ALIASES.get(top, top)
    if top not in Params.model_fields or "" in rest:
        _unknown(source, name)
    if (
        rest
        and top in SECTIONS
        and (rest[0] not in SECTIONS[top].model_fields or (len(rest) > 1 and f"{top}.{rest[0]}" not in FREE))
    ):
        raise UserError(f"{source}: unknown key {shorten(name)}; {suggest(rest[0], top)}")
    if rest and top not in (*SECTIONS, *FREE):
        raise UserError(f"{source}: unknown key {shorten(name)}; {top} has no parts")
    return [top, *rest]


def _unknown(source: str, name: str) -> Any:
    shown = f"--{shorten(name)[1:-1]}" if source == "command line" else shorten(name)
    raise UserError(f"{source}: unknown key {shown}; {suggest(name)}")


def _build(layers: list[Layer], folder: Path, given: frozenset[str] | None = None) -> Params:
    values = _merge_layers(layers)
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        path, text = explain(error)
        raise UserError(f"{_source(layers, path)}: {text}") from None
    params._given, params._folder = frozenset(values) if given is None else given, folder
    for name, wanted in params.hyper_search.items():
        try:
            check_space(params, name, wanted)
        except ValueError as error:
            raise UserError(f"{_source(layers, ['hyper_search', name])}: {error}") from None
    return params


def _source(layers: list[Layer], path: list[str]) -> str:
    """Where the value at `path` was written: the topmost layer that has it."""
    for source, values in reversed(layers):
        node: Any = values
        for name in path:
            node = node.get(name, _source) if isinstance(node, dict) else _source
        if node is not _source:
            return source
    return _source(layers, path[:-1])


# --- the command line -------------------------------------------------------------------------------


def parse_overrides(argv: list[str]) -> dict[str, Any]:
    """["--wd=0.1", "--early-stopping.patience", "3"] -> {"wd": 0.1, "early_stopping": {"patience": 3}}.

    Values are JSON, bare words strings. --model and --model.KEY mean arch and arch_args.KEY. The last of two
    equal flags counts. UserError for an unknown key, a flag without value, a key and its alias together.
    """
    values: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    words = list(argv)
    while words:
        flag, equals, text = words.pop(0).partition("=")
        if not flag.startswith("--") or flag == "--":
            raise UserError(f"command line: {shorten(flag)} given; possible: --key=value or --key value")
        path = _flag_path(flag)
        if not equals and (not words or words[0].startswith("--")):
            raise UserError(f"command line: {shorten(flag)[1:-1]} needs a value; write {shorten(flag)[1:-1]}=VALUE")
        top = flag[2:].replace("-", "_").partition(".")[0]
        if spelled.setdefault(path[0], top) != top:
            raise UserError(f"command line: --{spelled[path[0]]} and --{top} are the same key; give one of them")
        text = text if equals else words.pop(0)
        try:
            _put(values, path, decode_word(text))
        except ValueError as error:
            raise UserError(f"command line: {shorten(flag)[1:-1]}: {shorten(text)} is no JSON value: {error}") from None
    return values


def _flag_path(flag: str) -> list[str]:
    name = flag[2:].replace("-", "_")
    top, _, rest = name.partition(".")
    if top == "model":
        name = f"arch_args.{rest}" if rest else "arch"
    if top != "hyper_search" or not rest:
        return key_path(name, "command line")
    inner, _, last = rest.rpartition(".")
    is_range = last in ("min", "max", "log", "int", "choice") and inner
    path = key_path(inner if is_range else rest, "command line: hyper_search")
    return [top, ".".join(path), *([last] if is_range else [])]


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ValueError(f"{part} has a value of its own already")
    values |= _merge(values, {path[-1]: value})


# --- what is generated ------------------------------------------------------------------------------

DEFAULTS = Params()


def schema() -> dict[str, Any]:
    """JSON Schema of params.json for editors."""
    text = {"type": "string", "minLength": 1}
    base = text | {"description": "Another experiment folder or JSON file, relative to this file; it lies under it."}
    return editor_schema(Params, ALIASES, {"$schema": {"type": "string"}, "base": base})


def docs() -> str:
    """docs/params.md."""
    return tables(Params, SECTIONS, INTRO)
