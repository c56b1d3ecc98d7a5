"""Whose code a folder holds: record/trust.json seals record/code/ with the user's key. No torch.

The code that a trained folder brings (its own net, loss or metric, its frozen copy of the kit) runs only if this user
sealed it: train.py does so when it writes the copy, --trust does so for a copy that came from elsewhere. The key is
random and never leaves the user's state directory. Moved folders stay sealed; on another machine, --trust once.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from folder.console import name_some
from folder.manifest import digest_file
from include import CODE, EXIT_DAMAGED, EXIT_SYSTEM, ROOT, TRUST
from utils import UserError, command, read_json, sync_folder, write_json

KEY_BYTES = 32
OWN = "experiment/"  # in record/code/: the experiment's own files
Files = dict[str, str]  # name in record/code/ -> SHA-256 of the content


class Seals(TypedDict):
    """record/trust.json."""

    files: Files  # of the copy that was sealed last, to name what changed
    seals: dict[str, list[str]]  # digest of a copy -> one HMAC-SHA256 for each user who sealed it


@dataclass(frozen=True)
class Consent:
    """What the command line says about code that was not sealed by this user."""

    given: bool = False  # --trust
    command: Sequence[str] = ()  # to suggest, with --trust
    say: Callable[[str], None] = print


NO_CONSENT = Consent()


# --- the user's key -------------------------------------------------------------------------------------


def state_home() -> Path:
    """The kit's part of the user's state directory."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "experiment-folders"


def read_key() -> bytes | None:
    """This user's key, None when there is none yet. UserError when others can read it, or it cannot be read."""
    try:
        path = state_home() / "key"
    except RuntimeError:  # there is no home directory
        return None
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            key = file.read(KEY_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: the key that seals code cannot be read ({error.strerror})", EXIT_SYSTEM) from None
    if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.geteuid():
        raise UserError(f"{path}: the key that seals code must be yours alone: {command('chmod', 600, path)}")
    if len(key) != KEY_BYTES:
        raise UserError(f"{path}: no key of {KEY_BYTES} bytes; remove it, and give --trust where it is asked for")
    return key


def make_key() -> bytes:
    """This user's key; a new one when there is none. Of several processes that make one, all get the same."""
    if key := read_key():
        return key
    home = state_home()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Write it under another name first, so that a key is whole whenever it is there.
    descriptor, temporary = tempfile.mkstemp(prefix=".key-", dir=home)
    try:
        os.write(descriptor, secrets.token_bytes(KEY_BYTES))
        os.fsync(descriptor)
        try:
            os.link(temporary, home / "key")
        except FileExistsError:  # another process was first
            pass
        except OSError:  # a file system without hard links
            os.rename(temporary, home / "key")
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    sync_folder(home)
    key = read_key()
    assert key is not None
    return key


# --- what is sealed -------------------------------------------------------------------------------------


def list_code(code: Path) -> Files:
    """The files below `code` and the digests of their contents. UserError for anything that snapshot() never writes.

    __pycache__ is left out: it is removed before frozen code runs.
    """
    files: Files = {}
    for folder, folders, names in os.walk(code):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted([*folders, *names]):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                files[path.relative_to(code).as_posix()] = digest_file(path)
            elif not stat.S_ISDIR(mode):
                raise UserError(f"{path} is a link or no file: code runs only from files in {code}", EXIT_DAMAGED)
    return files


def digest_code(files: Files) -> str:
    """One SHA-256 for all names and contents."""
    text = "\n".join(f"{digest} {name}" for name, digest in sorted(files.items()))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def read_seals(folder: Path) -> Seals:
    """record/trust.json; without any seal when it is missing or is not what seal() writes."""
    with contextlib.suppress(UserError):
        value = read_json(folder / TRUST)
        if isinstance(value, dict) and isinstance(value.get("files"), dict) and isinstance(value.get("seals"), dict):
            return Seals(files=value["files"], seals=value["seals"])
    return Seals(files={}, seals={})


def seal(folder: Path, code: Path) -> None:
    """Seal the files below `code` as the code of `folder`, with this user's key. Seals of other users stay.

    OSError where the folder or the user's state directory cannot be written, RuntimeError without a home directory.
    """
    files = list_code(code)
    digest = digest_code(files)
    key = make_key()
    mac = _sign(key, digest)
    seals = read_seals(folder)["seals"]
    seals[digest] = list(dict.fromkeys([*_macs(seals, digest), mac]))
    write_json(folder / TRUST, Seals(files=files, seals=seals))


def _sign(key: bytes, digest: str) -> str:
    return hmac.new(key, digest.encode(), hashlib.sha256).hexdigest()


def _macs(seals: dict[str, list[str]], digest: str) -> list[str]:
    """The seals of one digest. The file may hold anything."""
    macs: object = seals.get(digest)
    return [mac for mac in macs if isinstance(mac, str)] if isinstance(macs, list) else []


def is_trusted(folder: Path, digest: str) -> bool:
    """True when this user sealed the code of this digest, here or with --trust elsewhere."""
    key = read_key()
    if key is None:
        return False
    own = _sign(key, digest).encode()
    macs = _macs(read_seals(folder)["seals"], digest)
    if any(hmac.compare_digest(mac.encode("utf-8", "replace"), own) for mac in macs):
        return True
    with contextlib.suppress(OSError):  # what --trust could not write into its folder
        return digest in (state_home() / "trusted").read_text().split()
    return False


# --- before code runs -----------------------------------------------------------------------------------


def find_code(folder: Path) -> Path:
    """record/code of a folder; after a kill in the moment in which a new copy gets its name, that copy."""
    code = folder / CODE
    unfinished = code.with_name(f".{code.name}")
    return code if code.exists() or not unfinished.exists() else unfinished


def check_trust(folder: Path, what: str, consent: Consent, program: Path | None = None) -> None:
    """UserError unless this user sealed the code in `folder`, or --trust is given: then it is listed, and sealed.

    `what` is about to run: "its own net.py", "its frozen code". `program`: the code that runs already, a frozen copy
    perhaps, when only the experiment's own files are about to run: those that it holds too need no other seal.
    """
    code = find_code(folder)
    files = list_code(code)
    digest = digest_code(files)
    if files and (is_trusted(folder, digest) or (program and _holds_own_files(program, files))):
        return
    if not consent.given:
        raise UserError(f"{folder}: {_describe_distrust(folder, files, what)}: {command(*consent.command, '--trust')}")
    if files:
        consent.say(_describe_code(folder, files))
        _remember(folder, code, digest)


def _holds_own_files(program: Path, files: Files) -> bool:
    """True when each of the experiment's own files is in `program`, too, as in the children of a search."""
    own = [name for name in files if name.startswith(OWN)]
    return bool(own) and all(_is_file_of(program, name, files[name]) for name in own)


def _describe_distrust(folder: Path, files: Files, what: str) -> str:
    """Why the code may not run: which files changed since this user sealed them, or that this user never did."""
    sealed = read_seals(folder)["files"]
    ways_out = f"Look at {folder / CODE}, then run it with"
    if sealed and is_trusted(folder, digest_code(sealed)):
        changed = sorted(name for name in files | sealed if files.get(name) != sealed.get(name))
        return f"{what} will not run: changed in {CODE} since you sealed it: {_shorten(changed)}. {ways_out}"
    return f"{what} will not run: it was not made by you on this machine (no seal with your key). {ways_out}"


def _describe_code(folder: Path, files: Files) -> str:
    """What --trust lets run: the experiment's own files, and the files of the kit that are not those of this tree."""
    own = [name for name in files if name.startswith(OWN)]
    kit = [name for name in files if not name.startswith(OWN)]
    other = [name for name in kit if not _is_file_of(ROOT, name, files[name])]
    lines = [f"trusted from now on: {folder / CODE}, {len(files)} files"]
    lines += [f"  the experiment's own: {_shorten(own)}"] if own else []
    lines += [f"  of the kit, other than in this tree: {len(other)} of {len(kit)}: {_shorten(other)}"] if other else []
    return "\n".join(lines)


def _is_file_of(root: Path, name: str, digest: str) -> bool:
    """True when `root` has a file of this name and content."""
    path = root / name
    return path.is_file() and digest_file(path) == digest


def _shorten(names: Sequence[str]) -> str:
    """The first names; control characters, which could hide others on a terminal, are escaped."""
    shown = [name if name.isprintable() else ascii(name) for name in names]
    return name_some(shown, 12)


def _remember(folder: Path, code: Path, digest: str) -> None:
    """Seal the code; where the folder cannot be written, note its digest in the user's state directory."""
    try:
        make_key()
    except (OSError, RuntimeError) as error:
        raise UserError(f"--trust: no key can be made ({error}); XDG_STATE_HOME says where", EXIT_SYSTEM) from None
    try:
        seal(folder, code)
    except OSError:
        with open(state_home() / "trusted", "a", encoding="utf-8") as file:
            file.write(f"{digest}\n")
