"""Experiment folders -> rows: what each folder's files say about its run. Reads only; needs no torch.

From rows to tables: report/tables.py.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from folder.history import recorded_minimized, validation_values
from folder.lock import is_alive
from folder.manifest import SEAL_KEYS
from folder.older_templates import add_older_history, is_of_another_kit, read_older_log
from include import (
    HISTORY_JSON,
    META,
    METRICS_BEST,
    METRICS_LAST,
    METRICS_TEST,
    PARAMS,
    RESOLVED,
    STATUS,
    TEST_LOOKS,
    TRAIN_LOG,
)
from params import read_object as read_lenient_json
from report.json_files import (
    MAX_NUMBER,
    History,
    JsonObject,
    Metrics,
    check_metrics,
    count_looks,
    decode,
    read_bytes,
    read_foreign_json,
    read_foreign_object,
    read_history,
    read_object,
    read_rare_object,
)
from utils import UserError, num_cores, reference_name

NOT_COMPARED = {"data_dir", "hyper_search", "search", "pinned", *SEAL_KEYS}  # not parameters of the run
MANY_FOLDERS, CHUNK_SIZE = 2000, 250  # beyond MANY_FOLDERS several processes read, CHUNK_SIZE folders at a time
FOREIGN = "written by another kit"
PROCESSES_PER_CORE, MAX_CORES = 4, 8  # most of the processes wait for the disk

Problems: TypeAlias = dict[str, str]  # folder name -> why it is not done


@dataclass(frozen=True)
class Row:
    """What the files of one experiment folder say."""

    name: str
    params: JsonObject  # the parameters that ran, by dotted name
    best: Metrics  # epoch, loss and metrics of the best weights on the validation split
    test: Metrics  # the same on the test split, {} when it was never evaluated
    num_looks: int | None  # evaluations on the test split; None when they were not counted
    history: History  # [] when read_rows was told not to keep it
    status: str
    minimized: frozenset[str]  # metrics where lower is better, see folder.history.is_minimized
    last: Metrics = field(default_factory=dict)  # as `best`, of the last weights
    num_epochs: int = 0  # epochs trained
    seconds: float = 0.0
    num_parameters: int | None = None  # of the net
    validation: str = ""  # the identity of the validation images; "" where it is not recorded

    @property
    def is_done(self) -> bool:
        """True for a run that has come to its end, by whichever kit."""
        return self.status in ("done", FOREIGN)

    @property
    def best_metric(self) -> str:
        """The bare name of the metric that chose the best weights."""
        return metric_name(self.params)


def metric_name(params: Mapping[str, object]) -> str:
    """The bare name of best_metric: "ece" for "metrics.py:ece"."""
    return reference_name(str(params.get("best_metric", "accuracy")))


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested objects as one, with dotted names."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[sys.intern(prefix + key)] = value
    return flat


# --- many folders ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """Folders that one call reads: (path, name in the table) each."""

    folders: list[tuple[str, str]]
    keep_history: bool


def read_rows(
    folders: Iterable[Path], parent: Path | None = None, keep_history: bool = True
) -> tuple[list[Row], Problems]:
    """(rows of the folders that have results, why each folder that is not done is not). Never fatal.

    parent: names are relative to it.
    """
    paths = [str(folder) for folder in folders]
    prefix = f"{parent}/" if parent else ""
    named = [(path, path.removeprefix(prefix)) for path in paths]
    rows: list[Row] = []
    problems: Problems = {}
    for chunk_rows, chunk_problems in _read_chunks(named, keep_history):
        rows += chunk_rows
        problems |= chunk_problems
    return rows, problems


def _read_chunks(named: list[tuple[str, str]], keep_history: bool) -> Iterator[tuple[list[Row], Problems]]:
    """Rows and problems in order, by several processes when there are many folders.

    Forking is not safe once torch runs threads, and sending histories costs more than reading them.
    """
    cores = num_cores()
    if len(named) <= MANY_FOLDERS or keep_history or cores < 2 or "torch" in sys.modules:
        yield _read_chunk(Chunk(named, keep_history))
        return
    import multiprocessing

    chunks = [Chunk(named[i : i + CHUNK_SIZE], keep_history) for i in range(0, len(named), CHUNK_SIZE)]
    with multiprocessing.get_context("fork").Pool(PROCESSES_PER_CORE * min(cores, MAX_CORES)) as pool:
        yield from pool.imap(_read_chunk, chunks)


def _read_chunk(chunk: Chunk) -> tuple[list[Row], Problems]:
    rows: list[Row] = []
    problems: Problems = {}
    for path, name in chunk.folders:
        try:
            row, remark = read_row(path, name, chunk.keep_history)
        except UserError as error:
            row, remark = None, f"malformed: {error}"
        except (KeyError, TypeError, ValueError, AttributeError, OSError, ArithmeticError) as error:
            row, remark = None, f"malformed: {type(error).__name__}: {error}"
        if row:
            rows.append(row)
        if remark:
            problems[name] = remark
    return rows, problems


# --- one folder -----------------------------------------------------------------------------------------


def read_row(path: str, name: str, keep_history: bool = True) -> tuple[Row | None, str]:
    """(the row of a folder, None without results; why it is not done, "" when it is).

    UserError, or the KeyError, TypeError, ... that unexpected content causes, when a file is malformed.
    """
    status = read_object(f"{path}/{STATUS}") or {}
    if not status and is_of_another_kit(path):
        return _read_foreign_row(path, name, keep_history)
    best = read_object(f"{path}/{METRICS_BEST}")
    written_params = read_bytes(f"{path}/{PARAMS}")
    if not status and best is None and written_params is None:
        _check_folder(path)
    _check_params(path, written_params)
    remark = unfinished_remark(status)
    if best is None:
        return None, remark or f"malformed: done, but there is no {METRICS_BEST}"
    resolved = read_object(f"{path}/{RESOLVED}")
    if not resolved:
        raise UserError(f"{path}/{RESOLVED}: no such file")
    meta = read_object(f"{path}/{META}") or {}
    history = read_checked_history(f"{path}/{HISTORY_JSON}")
    last = read_object(f"{path}/{METRICS_LAST}") or (validation_values(history[-1]) if history else {})
    test = read_rare_object(f"{path}/{METRICS_TEST}")
    if test.get("epoch", best.get("epoch")) != best.get("epoch"):
        test = {}  # measured before an extension: of weights that are no longer the best
    return Row(
        name=name,
        params=_compared_params(resolved, meta),
        best=check_metrics(best, f"{path}/{METRICS_BEST}"),
        test=check_metrics(test, f"{path}/{METRICS_TEST}"),
        num_looks=count_looks(f"{path}/{TEST_LOOKS}"),
        history=history if keep_history else [],
        status=current_state(status),
        minimized=recorded_minimized(meta),
        last=check_metrics(last, f"{path}/{METRICS_LAST}"),
        num_epochs=len(history),
        seconds=total_seconds(history),
        num_parameters=int(meta["num_parameters"]) if meta.get("num_parameters") else None,
        validation=str(_as_object(meta.get("data")).get("valid", "")),
    ), remark


def _read_foreign_row(path: str, name: str, keep_history: bool) -> tuple[Row, str]:
    """As read_row, of a folder that another kit wrote, such as the CS230 template: its metrics, and its log if any."""
    best, last, test = (
        check_metrics(read_foreign_object(file), file)
        for file in (f"{path}/{metrics}" for metrics in (METRICS_BEST, METRICS_LAST, METRICS_TEST))
    )
    run = read_older_log((read_bytes(f"{path}/{TRAIN_LOG}") or b"").decode("utf-8", "replace"))
    add_older_history(run, read_foreign_json(f"{path}/{HISTORY_JSON}"))
    params = read_lenient_json(Path(path) / PARAMS) if os.access(f"{path}/{PARAMS}", os.F_OK) else {}
    where = f"epoch {len(run.history)} of {run.num_epochs}"
    row = Row(
        name=name,
        params=flatten({key: value for key, value in params.items() if key not in NOT_COMPARED}),
        best=({"epoch": run.best_epoch} if run.best_epoch else {}) | best,
        test=test,
        num_looks=None,
        history=run.history if keep_history else [],
        status=FOREIGN if run.is_finished else "interrupted",
        minimized=frozenset({"loss"}),
        last=last,
        num_epochs=len(run.history),
        seconds=total_seconds(run.history),
    )
    return row, "" if run.is_finished else f"interrupted at {where}, or still training: {FOREIGN}"


def _as_object(value: object) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _compared_params(resolved: JsonObject, meta: JsonObject) -> JsonObject:
    """The parameters by dotted name, and the dataset's name as `data`."""
    params = flatten({key: value for key, value in resolved.items() if key not in NOT_COMPARED})
    if meta.get("data_dir"):
        params["data"] = os.path.basename(meta["data_dir"].rstrip("/"))
    return params


def total_seconds(history: History) -> float:
    """Time of all epochs, validation included."""
    return float(sum(epoch.get("seconds") or 0 for epoch in history))


def read_checked_history(path: str) -> History:
    """The history of a run. UserError when it is missing or damaged."""
    history = read_history(path)
    if history is None:
        raise UserError(f"{path}: no such file")
    is_finite = total_seconds(history) < MAX_NUMBER
    if not is_finite or not all(isinstance(epoch, dict) and "epoch" in epoch for epoch in history):
        raise UserError(f"{path} is damaged: train.py writes it again")
    return history


def _check_folder(path: str) -> None:
    """UserError for a path that is no folder, cannot be read, or is empty."""
    try:
        if not os.listdir(path):
            raise UserError(f"{path}: an empty folder")
    except FileNotFoundError:
        reason = f"a link to {os.readlink(path)}, which is gone" if os.path.islink(path) else "no such folder"
        raise UserError(f"{path}: {reason}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _check_params(path: str, written: bytes | None) -> None:
    """UserError when params.json exists and cannot be read."""
    if written is None:
        return
    try:
        values = decode(written)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        read_lenient_json(Path(path) / PARAMS)  # comments and trailing commas are allowed


# --- the state of a folder ------------------------------------------------------------------------------


def current_state(status: JsonObject) -> str:
    """created, running, killed (it says running, but its process is gone), interrupted, pruned, failed or done."""
    state = status.get("state", "created")
    expected_types = ((state, str), (status.get("epoch", 0), int), (status.get("step", 0), int))
    if not all(isinstance(value, kind) for value, kind in expected_types):
        raise UserError(f"{STATUS} is damaged (state, epoch, step)")
    if state != "running" or status.get("host") != socket.gethostname():
        return state
    return state if is_alive(int(status["pid"])) else "killed"


def unfinished_remark(status: JsonObject) -> str:
    """Why a folder is not done, "" when it is."""
    state = current_state(status)
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
