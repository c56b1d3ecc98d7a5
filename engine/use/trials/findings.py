"""Where a trial leaves what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from include import PARAMS, RECORD
from utils import JsonObject, write_json

if TYPE_CHECKING:
    from engine.plan import Plan


def write_findings(plan: Plan, name: str, findings: JsonObject) -> None:
    """Write the record `name` into the folder, which gets its params.json when --base makes it."""
    path = plan.folder.path
    (path / RECORD).mkdir(parents=True, exist_ok=True)
    if plan.written is not None:
        write_json(path / PARAMS, plan.written)
    write_json(path / name, findings)
