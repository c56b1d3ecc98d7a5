"""Which experiment a folder is: the random ids of the folder and of its attempt, sealed into its records.

So a copy is told from a folder that was moved, and a record or a state of another folder is never taken up.
The ids never enter weights, history, metrics or state: equal runs stay equal bytes. No torch.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from folder.manifest import FORMAT, seal
from include import EXIT_DAMAGED, META
from utils import JsonObject, UserError, read_json

ID_BYTES = 8
ADOPTS = "adopts"  # in meta.json, while the records get another id: the ids [folder, attempt] that they may still have


@dataclass(frozen=True)
class Identity:
    """The ids of a folder and of its attempt (one training from its start on)."""

    id: str
    attempt: str
    copied_from: str | None = None  # the id of the folder that this one was copied from

    @classmethod
    def make(cls) -> Identity:
        return cls(secrets.token_hex(ID_BYTES), secrets.token_hex(ID_BYTES))

    @property
    def ids(self) -> tuple[str, str]:
        return self.id, self.attempt

    def new_attempt(self) -> Identity:
        return replace(self, attempt=secrets.token_hex(ID_BYTES))

    def of_copy(self) -> Identity:
        """The identity of a copy of the folder that has this one."""
        return Identity(secrets.token_hex(ID_BYTES), self.attempt, copied_from=self.id)

    def seal(self, record: JsonObject) -> JsonObject:
        """`record` with the format, both ids and the digest."""
        return seal({**record, "format": FORMAT, "id": self.id, "attempt": self.attempt})


def identity_in(record: JsonObject) -> Identity | None:
    """The identity that a sealed record carries; None for one of format 1."""
    if "id" not in record:
        return None
    return Identity(str(record["id"]), str(record.get("attempt")), record.get("copied_from"))


def check_same(path: Path, record: JsonObject, meta: JsonObject) -> None:
    """UserError (exit 3) when the record at `path` is not of the folder and attempt that record/meta.json names."""
    own = [meta.get("id"), meta.get("attempt")]
    ids = [record.get("id"), record.get("attempt")]
    if ids != own and ids not in meta.get(ADOPTS, []):
        raise UserError(f"{path} belongs to another experiment folder or attempt than {META} beside it", EXIT_DAMAGED)


def is_copy(folder: Path, meta: JsonObject) -> bool:
    """True when the folder in which the run was recorded still exists elsewhere: `folder` is a copy of it."""
    recorded = meta.get("path")
    return isinstance(recorded, str) and "id" in meta and holds_id(Path(recorded), meta["id"], folder)


def holds_id(place: Path, id: str, other_than: Path) -> bool:
    """True when `place` is a folder with this id, and another folder than `other_than`."""
    try:
        if not place.is_dir() or place.samefile(other_than):
            return False
        meta = read_json(place / META)
    except (OSError, UserError):
        return False
    return isinstance(meta, dict) and meta.get("id") == id


def choose_identity(known: Identity | None, is_copied: bool, goes_on: bool) -> Identity:
    """The identity of what is going to be written, `known` being that of the records so far.

    A copy is a folder of its own; a run that starts, or starts over, is an attempt of its own.
    """
    if known is None:
        return Identity.make()
    identity = known.of_copy() if is_copied else known
    return identity if goes_on else identity.new_attempt()
