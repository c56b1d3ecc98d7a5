"""THE experiment folder: its names, lock, status, history, log, and what is derived from a commit.

Writes only inside the folder it was given (and the scratch folder that its links lead to).
"""

import contextlib
import datetime
import hashlib
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
from folder.lock import BusyError, give_back, take
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
    TENSORBOARD,
    WEIGHTS,
)
from params import Params
from utils import UserError, read_json, to_json, write_atomic, write_json

log = logging.getLogger("train")

PINNED = {"classes": list, "mean": list, "std": list, "im_sz": int, "data": dict, "machine": dict, "choice": dict,
          "automatic": dict}  # fmt: skip


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Folder:
    """One experiment folder."""

    def __init__(self, path: Path | str, is_main: bool = True):
        """`is_main`: False on every rank of a distributed run but the first, which alone takes the lock."""
        self.path, self.is_main = Path(path), is_main
        self._lock: int | None = None
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
        value = (default or {}) | value
        wrong = [key for key, kind in kinds.items() if not isinstance(value.get(key), kind)]
        if wrong:
            raise UserError(f"{self.path / name} is damaged ({', '.join(wrong)})", EXIT_DAMAGED)
        return value

    def resolved(self) -> dict[str, Any]:
        """What ran: every parameter, and the choices made for it under "pinned". UserError before any training."""
        if not (self.path / RESOLVED).exists():
            raise UserError(
                f"{self.path} has not been trained yet: python train.py --data_dir DATA --model_dir {self.path}"
            )
        resolved = self.record(RESOLVED, pinned=dict, num_epochs=int | float)
        pinned = resolved.get("pinned", {})
        wrong = [key for key, kind in PINNED.items() if not isinstance(pinned.get(key), kind)]
        wrong += sorted({"arch", "arch_args", "im_sz", "n_clas", "best_metric"} - resolved.keys())
        if wrong:
            raise UserError(f"{self.path / RESOLVED} is damaged ({', '.join(wrong)})", EXIT_DAMAGED)
        return resolved

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
        path = self.weights(which)
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, data)

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
            if self._lock is not None:
                give_back(self._lock)
            self._lock = None

    def acquire(self) -> None:
        """Take the lock until this process ends; see locked(). Of several ranks, only the first takes it."""
        if self._lock is not None or not self.is_main:
            return
        try:
            self._lock = take(self.path, self.path / PARAMS)
        except BusyError as busy:
            status = self.status()
            remote = f"process {status['pid']} on {status['host']}" if status.get("pid") else "another process"
            owner = f"process {busy.pid} on {socket.gethostname()}" if busy.pid else remote
            raise UserError(f"{self.path} is busy: {owner} is training it", EXIT_BUSY) from None
        except OSError as error:
            reason = f"cannot be locked ({error.strerror}); put it on a file system with locks"
            raise UserError(f"{self.path} {reason}", EXIT_SYSTEM) from None

    # --- starting ---

    def create(self, written: dict[str, Any] | None, scratch_dir: Path | None) -> None:
        """Make the folder ready to be written: params.json of a new one, subfolders, links to scratch disk."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.acquire()
        if written is not None:
            write_json(self.path / PARAMS, written)
        (self.path / RECORD).mkdir(exist_ok=True)
        (self.path / WEIGHTS).mkdir(exist_ok=True)
        for name in (CHECKPOINTS, TENSORBOARD):
            self._subfolder(name, scratch_dir)

    def _subfolder(self, name: str, scratch_dir: Path | None) -> None:
        path = self.path / name
        if path.exists():
            return
        if scratch_dir:
            key = hashlib.blake2b(str(self.path.resolve()).encode(), digest_size=4).hexdigest()
            target = scratch_dir.resolve() / f"{self.path.resolve().name}-{key}" / name
            target.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        else:
            path.mkdir()

    def check_links(self) -> None:
        """UserError when a link to scratch disk dangles, before anything is read or written."""
        for name in (CHECKPOINTS, TENSORBOARD):
            path = self.path / name
            if path.is_symlink() and not path.exists():
                gone = f"{path} links to {os.readlink(path)}, which is gone"
                raise UserError(f"{gone}: bring that disk back, or start over with --restart")

    def check_writable(self) -> None:
        """UserError (exit 5) when the folder cannot be written; called before anything is loaded."""
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
        write_json(self.path / STATUS, self._status)

    # --- what is derived from a commit ---

    def derive(self, history: list[dict[str, Any]], best: dict[str, Any] | None) -> None:
        """Write the history and metrics of the state that has just been committed."""
        write_json(self.path / HISTORY_JSON, history)
        write_atomic(self.path / HISTORY_CSV, history_csv(history))
        for name, row in ((METRICS_BEST, best), (METRICS_LAST, history[-1] if history else None)):
            if row:
                write_json(self.path / name, flat_metrics(row))

    def write_augmentation(self, record: dict[str, Any]) -> None:
        write_atomic(self.path / AUGMENTATION, to_json(record))
