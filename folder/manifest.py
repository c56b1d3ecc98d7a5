"""checkpoints/manifest.json lists the state files to resume from: a state counts as saved once it is named there.

It is read here, without torch, and written by engine/checkpoint.py.
"""

import hashlib
import json
from pathlib import Path

from include import EXIT_DAMAGED
from utils import JsonObject, UserError, read_json

MANIFEST = "manifest.json"
FORMAT = 1


def seal(value: JsonObject) -> JsonObject:
    """`value` with "digest", the SHA-256 of everything else in it as JSON with sorted keys."""
    content = {key: entry for key, entry in value.items() if key != "digest"}
    return content | {"digest": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def read_manifest(checkpoints: Path) -> JsonObject:
    """The commit record, {} when there is none. UserError (exit 3) when it is damaged."""
    path = checkpoints / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "last" not in manifest:
            raise UserError(f"{path}: not a manifest of format {FORMAT}")
        if manifest != seal(manifest):
            raise UserError(f"{path} is damaged (its digest is not that of its content)")
    except UserError as error:
        raise UserError(f"{error}; not touched", EXIT_DAMAGED) from None
    return manifest
