"""Subfolders on a scratch disk: where the links of an experiment folder lead, and whose files lie there.

A target has a random name, and a file that names the folder it belongs to: a target of another folder is not used.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from folder.identity import Identity, holds_id, is_copy
from folder.manifest import MANIFEST
from include import CHECKPOINTS, EXIT_DAMAGED, TENSORBOARD
from utils import JsonObject, UserError, read_json, write_json

LINKED = (CHECKPOINTS, TENSORBOARD)
OWNER = "identity"  # in a target: {"id", "copied_from", "folder", "inode"}


def target_of(link: Path) -> Path | None:
    """The kit's own target folder on scratch disk that `link` leads into; None for anything else."""
    if not link.is_symlink():
        return None
    target = Path(os.path.realpath(link)).parent
    return target if (target / OWNER).is_file() else None


def read_owner(target: Path) -> JsonObject:
    """The file that names the owner of a target; {} when it cannot be read."""
    try:
        owner = read_json(target / OWNER)
    except UserError:
        return {}
    return owner if isinstance(owner, dict) else {}


def check_owner(folder: Path, meta: JsonObject) -> None:
    """UserError (exit 3) when a link of `folder` leads to files that belong to another experiment folder."""
    for name in LINKED:
        target = target_of(folder / name)
        if not target:
            continue
        owner = read_owner(target)
        is_own = "id" in meta and meta["id"] in (owner.get("id"), owner.get("copied_from"))
        is_fresh = "id" not in meta and not (target / CHECKPOINTS / MANIFEST).exists()
        if not (is_own or is_fresh):
            raise UserError(
                f"{folder / name} links to {target}, which belongs to {owner.get('folder', 'another folder')}; "
                "not touched: remove the link, or start over with --restart",
                EXIT_DAMAGED,
            )


def is_shared(folder: Path, meta: JsonObject) -> bool:
    """True when a link leads to the target of another folder with the same id: one that exists elsewhere, or did.

    A folder that was moved keeps its inode; where it has another one, it is a copy, whatever became of the original.
    (One that was moved to another disk looks like a copy, too, and gets files of its own.)
    """
    targets = {target_of(folder / name) for name in LINKED} - {None}
    owners = [read_owner(target) for target in targets if target]
    places = [owner["folder"] for owner in owners if isinstance(owner.get("folder"), str)]
    is_elsewhere = any(holds_id(Path(place), meta.get("id", ""), folder) for place in places)
    return is_elsewhere or any("inode" in owner and owner["inode"] != folder.stat().st_ino for owner in owners)


def is_copied(folder: Path, meta: JsonObject) -> bool:
    """True when `folder` is a copy of a folder that still exists: its record says so, or its scratch target."""
    return "id" in meta and (is_copy(folder, meta) or is_shared(folder, meta))


def make_subfolders(folder: Path, scratch_dir: Path | None, identity: Identity) -> None:
    """Make checkpoints/ and tensorboard/ where they are missing: with `scratch_dir`, as links into a fresh target."""
    missing = [name for name in LINKED if not os.path.lexists(folder / name)]
    if scratch_dir and missing:
        target = make_target(folder, scratch_dir.resolve(), identity)
        for name in missing:
            (target / name).mkdir()
            (folder / name).symlink_to(target / name)
    for name in LINKED:
        if not (folder / name).exists():
            (folder / name).mkdir()
        elif target := target_of(folder / name):
            write_owner(folder, target, identity)


def make_target(folder: Path, scratch: Path, identity: Identity) -> Path:
    """A new folder below `scratch` that nobody else has, with its owner named in it."""
    target = scratch / f"{folder.resolve().name}-{secrets.token_hex(4)}"
    target.mkdir(parents=True)
    write_owner(folder, target, identity)
    return target


def describe_place(folder: Path) -> JsonObject:
    """Where a folder is, and its inode, which it keeps when it is moved and which a copy does not have."""
    return {"folder": str(folder.resolve()), "inode": folder.stat().st_ino}


def write_owner(folder: Path, target: Path, identity: Identity) -> None:
    owner = {"id": identity.id, "copied_from": identity.copied_from, **describe_place(folder)}
    if read_owner(target) != owner:
        write_json(target / OWNER, owner)


def copy_targets(folder: Path, identity: Identity) -> None:
    """Give a copied folder its own copy of what its links lead to; the links change once everything is there."""
    for name in LINKED:
        link = folder / name
        if not (link.is_symlink() and link.exists()):
            continue
        target = target_of(link)
        if target and describe_place(folder).items() <= read_owner(target).items():
            continue  # copied by an earlier start that was killed
        # copy it: beside the kit's own target, or into the folder for a link that somebody else made
        temporary = link.with_name(f".tmp-{name}")
        shutil.rmtree(temporary, ignore_errors=True) if not temporary.is_symlink() else temporary.unlink()
        if target:
            own = make_target(folder, target.parent, identity)
            shutil.copytree(link, own / name, symlinks=True)
            temporary.symlink_to(own / name)
            os.replace(temporary, link)
        else:
            shutil.copytree(link, temporary, symlinks=True)
            link.unlink()
            os.rename(temporary, link)
