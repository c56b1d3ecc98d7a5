"""The manifest of the checkpoints: the commit record of a run. Read here without torch, written by the engine."""

from pathlib import Path
from typing import Any

from include import EXIT_DAMAGED
from utils import UserError, read_json, sealed

MANIFEST, FORMAT = "manifest.json", 1


def read_manifest(checkpoints: Path) -> dict[str, Any]:
    """The commit record, {} when there is none. UserError (exit 3) when it is there and unreadable. Needs no torch."""
    path = checkpoints / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "last" not in manifest:
            raise UserError(f"{path}: not a manifest of format {FORMAT}")
        if manifest != sealed(manifest):
            raise UserError(f"{path} is damaged (its digest is not that of its content)")
    except UserError as error:
        raise UserError(f"{error}; not touched", EXIT_DAMAGED) from None
    return manifest
