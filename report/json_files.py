"""Read the JSON files of an experiment folder: quickly, with a size limit, and with one-line errors. Writes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

from utils import UserError

JsonObject: TypeAlias = dict[str, Any]  # as json reads it: the values are whatever the file holds
History: TypeAlias = list[JsonObject]  # one object per epoch
Metrics: TypeAlias = dict[str, float | None]  # name -> value; None when it is not defined

MAX_BYTES = 64 << 20  # larger files are refused
MAX_NUMBER = 1e300  # larger metrics are refused: they become infinite in a mean
READ_SIZE = 1 << 14  # bytes per read: most files are smaller, and a larger buffer costs more than the file
OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # opening a named pipe must not block


def read_bytes(path: str) -> bytes | None:
    """The content of a file, None when the file does not exist. UserError when it cannot be read."""
    try:
        descriptor = os.open(path, OPEN_FLAGS)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    try:
        parts = [os.read(descriptor, READ_SIZE)]
        while len(parts[-1]) == READ_SIZE and len(parts) * READ_SIZE <= MAX_BYTES:
            parts.append(os.read(descriptor, READ_SIZE))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(parts) * READ_SIZE > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_FOREIGN_DECODER = json.JSONDecoder(parse_constant=lambda _: None)


def decode(data: bytes) -> object:
    """The JSON value in `data`. ValueError or RecursionError when it is not JSON; NaN and Infinity are not."""
    return _DECODER.decode(data.decode())


def _decode_file(data: bytes, path: str) -> object:
    try:
        return decode(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())[:120]})") from None


def read_object(path: str) -> JsonObject | None:
    """The JSON object in a file, None when the file does not exist. UserError for anything else."""
    data = read_bytes(path)
    if data is None:
        return None
    value = _decode_file(data, path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (an object is expected)")
    return value


def read_history(path: str) -> History | None:
    """The JSON list in a file, None when the file does not exist. UserError for anything else."""
    data = read_bytes(path)
    if data is None:
        return None
    value = _decode_file(data, path)
    if not isinstance(value, list):
        raise UserError(f"{path} is damaged (a list is expected)")
    return value


def read_rare_object(path: str) -> JsonObject:
    """As read_object, {} for a missing file; asking os.access first is five times faster where most are missing."""
    return (read_object(path) or {}) if os.access(path, os.F_OK) else {}


def read_foreign_json(path: str) -> object:
    """The JSON value in a file of another kit, or None without it. NaN and Infinity become null."""
    data = read_bytes(path)
    try:
        return None if data is None else _FOREIGN_DECODER.decode(data.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())[:120]})") from None


def read_foreign_object(path: str) -> JsonObject:
    """The JSON object in a file of another kit, {} when the file does not exist. UserError for anything else."""
    value = read_foreign_json(path)
    if not isinstance(value, dict | None):
        raise UserError(f"{path} is damaged (an object is expected)")
    return value or {}


def check_metrics(values: Mapping[str, object], path: str) -> Metrics:
    """`values` when each is a finite number or null; otherwise a UserError that names `path`."""
    metrics: Metrics = {}
    for name, value in values.items():
        if value is not None and not (isinstance(value, int | float) and abs(value) < MAX_NUMBER):
            raise UserError(f"{path}: every value must be a finite number or null")
        metrics[name] = value
    return metrics


def count_looks(path: str) -> int:
    """Number of recorded looks at the test split: the lines of record/test_looks.jsonl that are not at other data."""
    data = read_bytes(path) if os.access(path, os.F_OK) else None
    return sum(bool(line.strip()) and b'"other_data"' not in line for line in data.splitlines()) if data else 0
