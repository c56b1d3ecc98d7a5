"""checkpoints/manifest.json lists the state files to resume from: a state counts as saved once it is named there.

It is read here, without torch, and written by engine/checkpoint.py. The digest that seals it seals the records, too.
"""

import hashlib
import json
from pathlib import Path

from include import EXIT_DAMAGED
from utils import JsonObject, UserError, read_json

MANIFEST = "manifest.json"
FORMAT = 2  # of an experiment folder: 1 had neither ids nor sealed records
SEAL_KEYS = frozenset({"format", "id", "attempt", "digest"})  # of a sealed record; the rest is its content


def digest_file(path: Path) -> str:
    """SHA-256 of its content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(value: JsonObject) -> JsonObject:
    """`value` with "digest", the SHA-256 of everything else in it as JSON with sorted keys."""
    content = {key: entry for key, entry in value.items() if key != "digest"}
    return content | {"digest": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def seal_without_id(record: JsonObject) -> JsonObject:
    """`record` with the format and the digest: for records of searches, whose folders have no id."""
    return seal({**record, "format": FORMAT})


def check_seal(path: Path, value: JsonObject) -> None:
    """UserError (exit 3) when a record is of a newer format, or is not as the kit wrote it.

    A record of format 1 states no format and has no seal; it is not checked.
    """
    number = value.get("format", 1)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UserError(f"{path} is damaged (format {number!r})", EXIT_DAMAGED)
    if number > FORMAT:
        raise UserError(
            f"{path} is of format {number}, which a newer version wrote; this version reads formats up to {FORMAT}",
            EXIT_DAMAGED,
        )
    if "format" not in value and "id" not in value:
        return
    try:
        is_whole = value == seal(value)
    except (TypeError, ValueError, RecursionError):
        is_whole = False
    if not is_whole:
        raise UserError(f"{path} is damaged or edited (its digest is not that of its content)", EXIT_DAMAGED)


def read_manifest(checkpoints: Path) -> JsonObject:
    """The commit record, {} when there is none. UserError (exit 3) when it is damaged."""
    path = checkpoints / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = read_json(path)
        if not isinstance(manifest, dict) or "format" not in manifest or "last" not in manifest:
            raise UserError(f"{path}: not a manifest")
        check_seal(path, manifest)
        if "digest" not in manifest:
            raise UserError(f"{path} is damaged (it has no digest)")
    except UserError as error:
        raise UserError(f"{error}; not touched", EXIT_DAMAGED) from None
    return manifest
