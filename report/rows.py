"""Experiment folders -> rows. Reads only; needs no torch. From rows to tables: report/tables.py."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from folder.history import recorded_minimized, validation_values
from folder.lock import is_alive
from include import HISTORY_JSON, META, METRICS_BEST, METRICS_LAST, METRICS_TEST, PARAMS, RESOLVED, STATUS, TEST_LOOKS
from params import read_object
from utils import UserError, num_cores, reference_name

NOT_COMPARED = {"data_dir", "hyper_search", "search", "pinned"}
REPLICATES = ("seed", "fold")  # runs that differ in these alone measure the same thing
MAX_BYTES, LARGEST = 64 << 20, 1e300  # of a file; of a metric
PART = 1 << 14  # bytes of one read: most files have less, and a larger buffer costs more than the file
MANY, CHUNK = 2000, 250  # from so many folders on, several processes read
PER_CORE, MAX_CORES = 4, 8  # processes of a core: most of them wait for a disk that is not in memory yet
FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe in the place of a file does not hold us up


@dataclass(frozen=True)
class Row:
    """What one experiment folder says."""

    name: str
    params: dict[str, Any]  # what ran, by dotted name
    best: dict[str, Any]  # epoch, loss and metrics of the best weights on the validation split
    test: dict[str, Any]  # the same on the test split, {} when nobody looked
    num_looks: int
    history: list[dict[str, Any]]  # [] when read_rows was told not to keep it
    status: str
    minimized: frozenset[str]  # metrics of which less is better
    last: dict[str, Any] = field(default_factory=dict)  # as `best`, of the last weights
    num_epochs: int = 0  # so many were trained
    seconds: float = 0.0
    num_parameters: int | None = None  # of the net

    @property
    def best_metric(self) -> str:
        return reference_name(str(self.params.get("best_metric", "accuracy")))


# --- files ----------------------------------------------------------------------------------------------


def read_bytes(path: str) -> bytes | None:
    """The content of a file, None when there is none. UserError when it cannot be read."""
    try:
        descriptor = os.open(path, FLAGS)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    try:
        parts = [os.read(descriptor, PART)]
        while len(parts[-1]) == PART and len(parts) * PART <= MAX_BYTES:
            parts.append(os.read(descriptor, PART))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(parts) * PART > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES >> 20} MiB")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def read_value(path: str, kind: type, default: Any = None) -> Any:
    """The JSON value in a file, `default` when there is none. UserError when it is damaged or not of `kind`."""
    data = read_bytes(path)
    if data is None:
        return default
    try:
        value = _DECODER.decode(data.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(value, kind):
        raise UserError(f"{path} is damaged ({'a list' if kind is list else 'an object'} is expected)")
    return value


def read_optional(path: str) -> dict[str, Any]:
    """The JSON object in a file that is often not there, which os.access says five times faster than open fails."""
    return read_value(path, dict, {}) if os.access(path, os.F_OK) else {}


def numbers(values: dict[str, Any], path: str) -> dict[str, Any]:
    """`values` when it is a flat table name -> finite number or null. UserError otherwise."""
    for value in values.values():
        is_number = isinstance(value, int | float) and abs(value) < LARGEST
        if not (value is None or is_number):
            raise UserError(f"{path}: a flat table of finite numbers is expected")
    return values


def count_looks(path: Path | str) -> int:
    """Lines of record/test_looks.jsonl."""
    data = read_bytes(str(path)) if os.access(path, os.F_OK) else None
    return sum(bool(line.strip()) for line in data.splitlines()) if data else 0


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[sys.intern(prefix + key)] = value
    return flat


# --- folders -> rows ------------------------------------------------------------------------------------


def read_rows(
    folders: Iterable[Path], parent: Path | None = None, keep_history: bool = True
) -> tuple[list[Row], dict[str, str]]:
    """(rows of the folders that have results, name -> what is the matter with one not done). Never fatal."""
    paths = [str(folder) for folder in folders]
    prefix = f"{parent}/" if parent else None
    named = [(path, path[len(prefix) :] if prefix and path.startswith(prefix) else path) for path in paths]
    rows: list[Row] = []
    problems: dict[str, str] = {}
    for some_rows, some_problems in _read_all(named, keep_history):
        rows += some_rows
        problems |= some_problems
    return rows, problems


def _read_all(named: list[tuple[str, str]], keep_history: bool) -> Iterable[tuple[list[Row], dict[str, str]]]:
    """Chunks of rows and problems, in order; forked processes help with many folders."""
    cores = num_cores()
    if len(named) <= MANY or keep_history or cores < 2 or "torch" in sys.modules:
        yield _read_some(named, keep_history)
        return
    import multiprocessing

    chunks = [(named[i : i + CHUNK], keep_history) for i in range(0, len(named), CHUNK)]
    with multiprocessing.get_context("fork").Pool(PER_CORE * min(cores, MAX_CORES)) as pool:
        yield from pool.imap(_read_chunk, chunks)


def _read_chunk(chunk: tuple[list[tuple[str, str]], bool]) -> tuple[list[Row], dict[str, str]]:
    return _read_some(*chunk)


def _read_some(named: list[tuple[str, str]], keep_history: bool) -> tuple[list[Row], dict[str, str]]:
    rows: list[Row] = []
    problems: dict[str, str] = {}
    for path, name in named:
        try:
            row, remark = read_row(path, name, keep_history)
        except UserError as error:
            row, remark = None, f"malformed: {error}"
        except (KeyError, TypeError, ValueError, AttributeError, OSError, ArithmeticError) as error:
            row, remark = None, f"malformed: {type(error).__name__}: {error}"
        if row:
            rows.append(row)
        if remark:
            problems[name] = remark
    return rows, problems


def read_row(path: str, name: str, keep_history: bool = True) -> tuple[Row | None, str]:
    """(what a folder says, None without results; what keeps it from being done, "" when it is).

    UserError, or whatever a file of another shape causes, when it is malformed.
    """
    status = read_value(f"{path}/{STATUS}", dict, {})
    best = read_value(f"{path}/{METRICS_BEST}", dict)
    given = read_bytes(f"{path}/{PARAMS}")
    if not status and best is None and given is None:
        _check_folder(path)
    _check_given(path, given)
    remark = state_remark(status)
    if best is None:
        return None, remark or f"malformed: done, but there is no {METRICS_BEST}"
    resolved, meta = read_value(f"{path}/{RESOLVED}", dict), read_value(f"{path}/{META}", dict, {})
    if not resolved:
        raise UserError(f"{path}/{RESOLVED}: no such file")
    params = flatten({key: value for key, value in resolved.items() if key not in NOT_COMPARED})
    if meta.get("data_dir"):
        params["data"] = os.path.basename(meta["data_dir"].rstrip("/"))
    history = read_value(f"{path}/{HISTORY_JSON}", list)
    if history is None:
        raise UserError(f"{path}/{HISTORY_JSON}: no such file")
    seconds = float(sum(line.get("seconds") or 0 for line in history))
    if not seconds < LARGEST or not all(isinstance(line, dict) and "epoch" in line for line in history):
        raise UserError(f"{path}/{HISTORY_JSON} is damaged: train.py writes it again")
    last = read_value(f"{path}/{METRICS_LAST}", dict) or (validation_values(history[-1]) if history else {})
    test = read_optional(f"{path}/{METRICS_TEST}")
    return Row(
        name=name,
        params=params,
        best=numbers(best, f"{path}/{METRICS_BEST}"),
        test=numbers(test, f"{path}/{METRICS_TEST}"),
        num_looks=count_looks(f"{path}/{TEST_LOOKS}"),
        history=history if keep_history else [],
        status=status_of(status),
        minimized=recorded_minimized(meta),
        last=numbers(last, f"{path}/{METRICS_LAST}"),
        num_epochs=len(history),
        seconds=seconds,
        num_parameters=int(meta["num_parameters"]) if meta.get("num_parameters") else None,
    ), remark


def _check_folder(path: str) -> None:
    """UserError for a place that is no folder, cannot be read or holds nothing."""
    try:
        if not os.listdir(path):
            raise UserError(f"{path}: an empty folder")
    except FileNotFoundError:
        target = f"a link to {os.readlink(path)}, which is gone" if os.path.islink(path) else "no such folder"
        raise UserError(f"{path}: {target}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _check_given(path: str, given: bytes | None) -> None:
    """UserError when params.json is there and cannot be read."""
    if given is None:
        return
    try:
        values = _DECODER.decode(given.decode())
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        read_object(Path(path) / PARAMS)  # comments and trailing commas are forgiven


def status_of(status: dict[str, Any]) -> str:
    """created, running, killed (it says running, but its process is gone), interrupted, pruned, failed or done."""
    state = status.get("state", "created")
    kinds = ((state, str), (status.get("epoch", 0), int), (status.get("step", 0), int))
    if not all(isinstance(value, kind) for value, kind in kinds):
        raise UserError(f"{STATUS} is damaged (state, epoch, step)")
    if state != "running" or status.get("host") != socket.gethostname():
        return state
    return state if is_alive(int(status["pid"])) else "killed"


def state_remark(status: dict[str, Any]) -> str:
    """What keeps a folder from being done, "" when it is."""
    state = status_of(status)
    where = f"epoch {status.get('epoch', 0)}, step {status.get('step', 0)}"
    message = " ".join(str(status.get("message", "")).split())
    match state:
        case "done":
            return ""
        case "created":
            return "not trained yet"
        case "running" | "killed":
            return f"{state} at {where}"
        case _:
            return f"{state} at {where}" + (f": {message}" if message else "")


# --- rows beside each other -----------------------------------------------------------------------------


def differing(rows: Sequence[Row]) -> list[str]:
    """The parameters that are not the same in all rows."""
    if not rows:
        return []
    if len({tuple(row.params) for row in rows}) == 1:  # the same names in the same order: column by column
        columns = zip(*(row.params.values() for row in rows), strict=True)
        return [key for key, column in zip(rows[0].params, columns, strict=True) if column.count(column[0]) < len(rows)]
    keys, first = dict.fromkeys(key for row in rows for key in row.params), rows[0].params
    return [key for key in keys if any(row.params.get(key) != first.get(key) for row in rows)]


def grouped(rows: Sequence[Row], keys: Sequence[str] | None = None) -> list[list[Row]]:
    """Rows whose parameters differ in seed or fold alone, together, in the order of the first of each.

    `keys`: differing(rows), where that is known already.
    """
    keys = [key for key in (differing(rows) if keys is None else keys) if key not in REPLICATES]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row.params.get(key) for key in keys]), []).append(row)
    return list(groups.values())


def label(row: Row, keys: Sequence[str]) -> str:
    """What tells a run from the others, for a legend; its folder's name when that is too much to say."""
    text = ", ".join(f"{key} {show(row.params.get(key))}" for key in keys)
    return text if text and len(text) <= 90 else row.name


def show(value: Any) -> str:
    """A parameter as people write it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
