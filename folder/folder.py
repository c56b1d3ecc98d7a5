"""THE experiment folder: its names, lock, status, history, log, and what is derived from a commit.

Writes only inside the folder it was given (and the scratch folder that its links lead to).
"""

import contextlib
import datetime
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import params as params_module
from folder.console import close_log
from folder.history import flat_metrics, history_csv
from folder.identity import Identity, check_same
from folder.lock import BusyError, give_back, take
from folder.manifest import SEAL_KEYS, check_seal
from folder.older_templates import explain_older_folder, is_of_another_kit
from folder.scratch import OWNER, make_subfolders
from include import (
    AUGMENTATION,
    CHECKPOINTS,
    EXIT_BUSY,
    EXIT_DAMAGED,
    EXIT_SYSTEM,
    HISTORY_CSV,
    HISTORY_JSON,
    META,
    METRICS_BEST,
    METRICS_LAST,
    PARAMS,
    RECORD,
    RESOLVED,
    STATUS,
    WEIGHTS,
)
from params import Params
from utils import JsonObject, UserError, command, read_json, to_json, write_atomic, write_json

log = logging.getLogger("train")

PINNED = {"classes": list, "mean": list, "std": list, "im_sz": int, "data": dict, "machine": dict, "choice": dict,
          "automatic": dict}  # fmt: skip


def inode_of(path: Path) -> tuple[int, int] | None:
    """Device and inode of `path`, links followed; None when there is nothing."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Folder:
    """One experiment folder."""

    def __init__(self, path: Path | str, is_main: bool = True):
        """`is_main`: False on every rank of a distributed run but the first, which alone takes the lock."""
        self.path = Path(path)
        self.is_main = is_main
        self.identity: Identity | None = None  # known once this process writes the folder
        self._lock: int | None = None
        self._held: tuple[int, int] | None = None  # device and inode of the locked folder
        self._scratch_locks: dict[tuple[int, int], int] = {}  # of what checkpoints/ links to, by device and inode
        self._status: dict[str, Any] = {}
        self._status_time = 0.0

    # --- reading ---

    def read(self, name: str, default: Any = None) -> Any:
        """A JSON file of the folder, `default` when it is missing. UserError when it is damaged."""
        path = self.path / name
        return read_json(path) if path.exists() else default

    def record(self, name: str, default: dict[str, Any] | None = None, **kinds: Any) -> dict[str, Any]:
        """A JSON object of the folder over `default`, {} when it is missing.

        UserError (exit 3) when it is not an object, or a value has the wrong type.
        """
        if not (self.path / name).exists():
            return {}
        value = self.read(name)
        if not isinstance(value, dict):
            raise UserError(f"{self.path / name} is damaged (no JSON object)", EXIT_DAMAGED)
        check_seal(self.path / name, value)
        value = (default or {}) | value
        wrong = [key for key, kind in kinds.items() if not isinstance(value.get(key), kind)]
        if wrong:
            raise UserError(f"{self.path / name} is damaged ({', '.join(wrong)})", EXIT_DAMAGED)
        return value

    def resolved(self) -> dict[str, Any]:
        """What ran: every parameter, and the choices made for it under "pinned". UserError before any training."""
        if not (self.path / RESOLVED).exists():
            if is_of_another_kit(self.path):
                raise UserError(explain_older_folder(self.path))
            if (self.path / META).exists() and (self.path / HISTORY_JSON).exists():
                train = command("python", "train.py", "--model_dir", self.path)
                reason = f"{self.path / RESOLVED} is missing; not touched. What can be done is said by: {train}"
                raise UserError(reason, EXIT_DAMAGED)
            raise UserError(
                f"{self.path} has not been trained yet: python train.py --data_dir DATA --model_dir {self.path}"
            )
        resolved = self.record(RESOLVED, pinned=dict, num_epochs=int | float)
        pinned = resolved.get("pinned", {})
        wrong = [key for key, kind in PINNED.items() if not isinstance(pinned.get(key), kind)]
        wrong += sorted({"arch", "arch_args", "im_sz", "n_clas", "best_metric"} - resolved.keys())
        if wrong:
            raise UserError(f"{self.path / RESOLVED} is damaged ({', '.join(wrong)})", EXIT_DAMAGED)
        if (self.path / META).exists():
            check_same(self.path / RESOLVED, resolved, self.meta())
        return {key: value for key, value in resolved.items() if key not in SEAL_KEYS}

    def params(self) -> Params:
        """The parameters that ran."""
        return params_module.from_resolved({k: v for k, v in self.resolved().items() if k != "pinned"}, self.path)

    def history(self) -> list[dict[str, Any]]:
        """One row per epoch. UserError (exit 3) when it is damaged."""
        rows = self.read(HISTORY_JSON, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "epoch" in row for row in rows):
            raise UserError(f"{self.path / HISTORY_JSON} is damaged: train.py writes it again", EXIT_DAMAGED)
        return rows

    def meta(self) -> dict[str, Any]:
        """Where it came from: versions, command lines, data."""
        kinds = {"overrides": dict, "data": dict, "sessions": list, "data_dir": str, "restore_file": str | None}
        return self.record(META, minimize=list | None, **kinds)

    def status(self) -> dict[str, Any]:
        """Its status, for people to read; "unknown", with the reason, when it cannot be read."""
        unknown = {"state": "created", "epoch": 0, "step": 0, "message": "", "pid": 0, "host": ""}
        try:
            kinds = {"state": str, "epoch": int, "step": int, "message": str, "pid": int, "host": str}
            return self.record(STATUS, unknown, **kinds) or unknown
        except UserError as error:
            return unknown | {"state": "unknown", "message": str(error)}

    def weights(self, which: str = "best") -> Path:
        return self.path / WEIGHTS / f"{which}.safetensors"

    def write_weights(self, which: str, data: bytes) -> None:
        """Replace weights/best or weights/last."""
        self.check_held()
        self.weights(which).parent.mkdir(exist_ok=True)
        self.write(f"{WEIGHTS}/{which}.safetensors", data)

    def write(self, name: str, data: bytes | str) -> None:
        """Replace a file of the folder. UserError (exit 5) when the folder is no longer in its place."""
        self.check_held()
        write_atomic(self.path / name, data, self.check_held)

    # --- the lock ---

    @contextlib.contextmanager
    def locked(self) -> Iterator["Folder"]:
        """Hold the folder for this process. UserError (exit 4) when another trains it. The kernel frees the lock."""
        try:
            if self.path.is_dir():
                self.acquire()
            yield self
        finally:
            close_log()
            for lock in [*self._scratch_locks.values(), *([] if self._lock is None else [self._lock])]:
                give_back(lock)
            self._scratch_locks.clear()
            self._lock = None
            self._held = None

    def acquire(self) -> None:
        """Take the lock until this process ends; see locked(). Of several ranks, only the first takes it."""
        if self._lock is not None or not self.is_main:
            return
        self._lock = self._take(self.path, self.path / PARAMS)
        self._held = inode_of(self.path)
        self._lock_scratch()

    def _lock_scratch(self) -> None:
        """Lock what checkpoints/ links to, too: a copied folder may link to the same place."""
        link = self.path / CHECKPOINTS
        target = inode_of(link) if self.is_main and link.is_symlink() else None
        if target and target not in self._scratch_locks:
            self._scratch_locks[target] = self._take(link, link.resolve().parent / OWNER)

    def _take(self, path: Path, file: Path) -> int:
        """Lock `path` or, where folders cannot be locked, `file`. UserError when that cannot be done."""
        try:
            return take(path, file)
        except BusyError as busy:
            status = self.status()
            remote = f"process {status['pid']} on {status['host']}" if status.get("pid") else "another process"
            owner = f"process {busy.pid} on {socket.gethostname()}" if busy.pid else remote
            raise UserError(f"{path} is busy: {owner} is training it", EXIT_BUSY) from None
        except OSError as error:
            reason = f"cannot be locked ({error.strerror}); put it on a file system with locks"
            raise UserError(f"{path} {reason}", EXIT_SYSTEM) from None

    def is_held(self) -> bool:
        """True unless another folder, or none, has come into the place of the one that this process locked."""
        return self._held is None or self._held == inode_of(self.path)

    def check_held(self) -> None:
        """UserError (exit 5) unless what is about to be written is the folder that this process locked."""
        if self.is_held():
            return
        now_there = "another folder is there now" if self.path.exists() else "it is gone from there"
        continuing = command("python", "train.py", "--model_dir", self._place() or "NEW_PLACE")
        raise UserError(
            f"{self.path} was moved or replaced while this process trained it ({now_there}): nothing more is written. "
            f"Continue it in its new place: {continuing}",
            EXIT_SYSTEM,
        )

    def _place(self) -> str:
        """Where the locked folder is now, "" when the system does not say, or it was deleted."""
        try:
            place = os.readlink(f"/proc/self/fd/{self._lock}")
        except OSError:
            return ""
        return place if Path(place).is_dir() and inode_of(Path(place)) == self._held else ""

    # --- starting ---

    def create(self, written: dict[str, Any] | None, scratch_dir: Path | None, identity: Identity) -> None:
        """Make the folder ready to be written: params.json of a new one, subfolders, links to scratch disk."""
        self.identity = identity
        self.path.mkdir(parents=True, exist_ok=True)
        self.acquire()
        if written is not None:
            write_json(self.path / PARAMS, written)
        (self.path / RECORD).mkdir(exist_ok=True)
        (self.path / WEIGHTS).mkdir(exist_ok=True)
        make_subfolders(self.path, scratch_dir, identity)
        self._lock_scratch()

    def write_record(self, name: str, record: JsonObject) -> None:
        """Write a record that decides something, sealed with the ids of the folder."""
        assert self.identity is not None
        self.write(name, to_json(self.identity.seal(record)))

    def check_data(self, data_dir: Path) -> None:
        """UserError for data that this folder was trained on and that is no longer there."""
        if not data_dir.exists() and self.meta().get("data_dir") == str(data_dir):
            raise UserError(
                f"{self.path} was trained on {data_dir}, where nothing is now; if it moved: --data_dir NEW_PLACE"
            )

    def check_ready(self, data_dir: Path) -> None:
        """UserError when the folder cannot be written or its data is gone; called before anything is loaded."""
        self.check_writable()
        self.check_data(data_dir)

    def check_writable(self) -> None:
        """UserError (exit 5) when the folder cannot be written."""
        place = self.path.absolute()
        while not place.exists():
            place = place.parent
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"{place}: this user may not write here", EXIT_SYSTEM)

    def write_status(self, state: str, message: str = "", code: int = 0, **where: Any) -> None:
        """record/status.json; "running" at most once in two seconds."""
        if state == self._status.get("state") == "running" and time.monotonic() - self._status_time < 2:
            return
        kept = {key: self._status.get(key, 0) for key in ("epoch", "step")}
        self._status = {
            "state": state,
            **kept,
            **where,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "updated": now(),
        }
        self._status |= {"message": message} | ({"code": code} if code else {})
        self._status_time = time.monotonic()
        self.write(STATUS, to_json(self._status))

    # --- what is derived from a commit ---

    def derive(self, history: list[dict[str, Any]], best: dict[str, Any] | None) -> None:
        """Write the history and metrics of the state that has just been committed."""
        self.write(HISTORY_JSON, to_json(history))
        self.write(HISTORY_CSV, history_csv(history))
        for name, row in ((METRICS_BEST, best), (METRICS_LAST, history[-1] if history else None)):
            if row:
                self.write(name, to_json(flat_metrics(row)))

    def write_augmentation(self, record: dict[str, Any]) -> None:
        self.write(AUGMENTATION, to_json(record))
