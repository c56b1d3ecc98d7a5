"""THE experiment folder: its names, lock, status, history, log, and what is derived from a commit.

Writes only inside the folder it was given (and the scratch folder that its links lead to).
"""

import contextlib
import csv
import datetime
import fcntl
import hashlib
import io
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import params as params_module
from include import (
    ATTEMPTS,
    AUGMENTATION,
    BATCH_PNG,
    CHECKPOINTS,
    EVALUATION,
    EXIT_BUSY,
    EXIT_DAMAGED,
    HISTORY_CSV,
    HISTORY_JSON,
    META,
    METRICS_BEST,
    METRICS_LAST,
    METRICS_TEST,
    PARAMS,
    RECORD,
    RESOLVED,
    STATUS,
    STDERR,
    STDOUT,
    TENSORBOARD,
    TRAIN_HISTORY_PNG,
    TRAIN_LOG,
    WEIGHTS,
)
from params import Params
from utils import UserError, read_json, to_json, write_atomic, write_json

log = logging.getLogger("train")

OUTPUTS = (
    HISTORY_JSON, HISTORY_CSV, METRICS_BEST, METRICS_LAST, METRICS_TEST, EVALUATION, TRAIN_LOG,
    TRAIN_HISTORY_PNG, BATCH_PNG, WEIGHTS, CHECKPOINTS, TENSORBOARD, RECORD, "report.html",
)  # fmt: skip


MANIFEST, FORMAT = "manifest.json", 1


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Folder:
    """One experiment folder."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._lock: int | None = None
        self._status: dict[str, Any] = {}
        self._status_time = 0.0

    # --- reading ---

    def read(self, name: str, default: Any = None) -> Any:
        """A JSON file of the folder, `default` when it is missing. UserError when it is damaged."""
        path = self.path / name
        return read_json(path) if path.exists() else default

    def resolved(self) -> dict[str, Any]:
        """What ran: every parameter, and the choices made for it under "pinned". UserError when nothing ran yet."""
        if not (self.path / RESOLVED).exists():
            raise UserError(
                f"{self.path} has not been trained yet: python train.py --data_dir DATA --model_dir {self.path}"
            )
        return read_json(self.path / RESOLVED)

    def params(self) -> Params:
        """The parameters that ran."""
        return params_module.from_resolved({k: v for k, v in self.resolved().items() if k != "pinned"}, self.path)

    def history(self) -> list[dict[str, Any]]:
        return self.read(HISTORY_JSON, [])

    def meta(self) -> dict[str, Any]:
        return self.read(META, {})

    def status(self) -> dict[str, Any]:
        return self.read(STATUS, {"state": "created", "epoch": 0, "step": 0, "message": ""})

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
            self.close_log()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def acquire(self) -> None:
        if self._lock is not None:
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            inode = os.fstat(descriptor).st_ino
            os.close(descriptor)
            raise UserError(f"{self.path} is busy: {self._owner(inode)} is training it", EXIT_BUSY) from None
        self._lock = descriptor

    def _owner(self, inode: int) -> str:
        """Who holds the lock: the kernel's table knows for this machine, status.json for another."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path("/proc/locks").read_text().splitlines():
                fields = line.split()
                if fields[1] == "FLOCK" and int(fields[5].split(":")[2]) == inode:
                    return f"process {fields[4]} on {socket.gethostname()}"
        with contextlib.suppress(UserError):
            status = self.status()
            if status.get("pid"):
                return f"process {status['pid']} on {status['host']}"
        return "another process"

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

    def move_aside(self) -> Path | None:
        """Move an earlier attempt to attempts/N; what the user wrote stays. None when there is nothing to move."""
        present = [self.path / name for name in OUTPUTS if os.path.lexists(self.path / name)]
        present += sorted(self.path.glob("evaluation_*")) + sorted(self.path.glob("metrics_*_*.json"))
        if not present:
            return None
        numbers = [int(p.name) for p in (self.path / ATTEMPTS).glob("*") if p.name.isdigit()]
        target = self.path / ATTEMPTS / str(max(numbers, default=0) + 1)
        target.mkdir(parents=True)
        for path in dict.fromkeys(present):
            if os.path.lexists(path):
                os.rename(path, target / path.name)
        return target

    def open_log(self, to_stderr: bool = False) -> None:
        """Everything printed from now on also goes to train.log, record/stdout.txt and record/stderr.txt."""
        sys.stdout = Tee(sys.stdout, self.path / STDOUT)
        sys.stderr = Tee(sys.stderr, self.path / STDERR)
        file = logging.FileHandler(self.path / TRAIN_LOG, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        screen = logging.StreamHandler(sys.stderr if to_stderr else sys.stdout)
        screen.setFormatter(logging.Formatter("%(message)s"))
        log.handlers[:] = [file, screen]
        log.setLevel(logging.INFO)
        log.propagate = False
        only_file = logging.getLogger("train.file")
        only_file.handlers[:], only_file.propagate = [file], False

    def close_log(self) -> None:
        for handler in log.handlers:
            handler.close()
        log.handlers.clear()
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if isinstance(stream, Tee):
                setattr(sys, name, stream.close_copy())

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
        """History and metrics, as files, from the state that has just been committed."""
        write_json(self.path / HISTORY_JSON, history)
        write_atomic(self.path / HISTORY_CSV, history_csv(history))
        for name, row in ((METRICS_BEST, best), (METRICS_LAST, history[-1] if history else None)):
            if row:
                write_json(self.path / name, flat_metrics(row))

    def write_augmentation(self, record: dict[str, Any]) -> None:
        write_atomic(self.path / AUGMENTATION, to_json(record))


def read_manifest(checkpoints: Path) -> dict[str, Any]:
    """The commit record, {} when there is none. UserError (exit 3) when it is there and unreadable. Needs no torch."""
    path = checkpoints / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "last" not in manifest:
            raise UserError(f"{path}: not a manifest of format {FORMAT}")
    except UserError as error:
        raise UserError(f"{error}; not touched", EXIT_DAMAGED) from None
    return manifest


def flat_metrics(row: dict[str, Any]) -> dict[str, Any]:
    """{"epoch", "loss", every validation metric} of a history row."""
    values = {key.removeprefix("val_"): value for key, value in row.items() if key.startswith("val_")}
    return {"epoch": row["epoch"], **values}


def history_csv(history: list[dict[str, Any]]) -> str:
    """The history as CSV, one row per epoch; a list of learning rates stays one JSON cell."""
    text = io.StringIO()
    if history:
        writer = csv.DictWriter(
            text, fieldnames=list(history[-1]), lineterminator="\n", restval="", extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(history)
    return text.getvalue()


class Tee(io.TextIOBase):
    """A stream whose text also goes to a file. Losing the console never stops a run."""

    def __init__(self, stream: Any, path: Path):
        self.stream, self.file = stream, open(path, "a", encoding="utf-8")

    def write(self, text: str) -> int:
        self.file.write(text)
        self.file.flush()
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            self.stream.write(text.encode("ascii", "replace").decode())
        except (BrokenPipeError, ValueError, OSError):
            self.stream = open(os.devnull, "w")  # noqa: SIM115 (it lives as long as the process)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError, OSError):
            self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def close_copy(self) -> Any:
        self.flush()
        self.file.close()
        return self.stream
