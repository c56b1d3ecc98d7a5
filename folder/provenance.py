"""The evidence of a run: the code that ran, the command, versions, git, packages."""

import ast
import functools
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from folder.arguments import Request
from folder.console import name_some
from folder.folder import Folder, now
from folder.manifest import digest_file
from folder.trust import Consent, check_trust, find_code, read_seals, seal
from include import CODE, DIFF_PATCH, META, REQUIREMENTS, ROOT, VERSION
from utils import JsonObject, UserError, cache_home, reference_file, reference_name, write_atomic

log = logging.getLogger("train")

# Files whose change refuses a resume. The most specific entry for a file decides: the file itself, else the nearest
# folder above it that is listed. A file under no entry does not count.
# So a new file in model/ or engine/ counts until it is listed. The experiment's own files always count.
RESULT_CODE = {
    "train.py": True,
    "include.py": True,
    "utils.py": True,
    "params": True,
    "model": True,
    "model/images/build": False,  # it makes datasets; a run notices another dataset by its identity
    "model/images/check.py": False,
    "folder/history.py": True,  # it chooses the best epoch
    "engine": True,
    "engine/observers": False,
    "engine/use": False,
    "engine/use/inference.py": True,
}
# What the outputs of a trained net depend on: the net, and the images that it is given.
INFERENCE_CODE = {
    "include.py": True,
    "utils.py": True,
    "params": True,
    "model": True,
    "model/images/build": False,
    "model/images/check.py": False,
    "engine/use/inference.py": True,
}
VERSION_FILE = "include.py"  # all but its VERSION: a release continues the runs of the last one
ROOMS = ("params", "model", "folder", "report", "engine", "search")
MARKER = "EXPERIMENT_FOLDERS_FROZEN"  # set while a frozen copy runs


def is_result_code(file: Path, table: Mapping[str, bool] = RESULT_CODE) -> bool:
    """True when a result depends on `file`, a path relative to the kit's root; `table`: RESULT_CODE or its like."""
    listed = (table.get(path.as_posix()) for path in (file, *file.parents))
    return next((counts for counts in listed if counts is not None), False)


def source_files(root: Path) -> list[Path]:
    """The kit's own source under `root`, relative: root modules and everything in the packages, templates included."""
    files = [*root.glob("*.py")]
    for room in ROOMS:
        files += [path for path in (root / room).rglob("*") if path.is_file() and not _is_byproduct(path)]
    return sorted(path.relative_to(root) for path in files)


def _is_byproduct(path: Path) -> bool:
    """Files that Python and editors leave beside the source."""
    return path.parent.name == "__pycache__" or path.name.startswith((".", "#")) or path.name.endswith(("~", ".pyc"))


def references(values: object) -> set[str]:
    """The files named by "file.py:Name" values anywhere in the parameters."""
    if isinstance(values, dict | list):
        parts = values.values() if isinstance(values, dict) else values
        return {name for part in parts for name in references(part)}
    return {reference_file(values)} if isinstance(values, str) and ".py:" in values else set()


def check_own_names(values: object) -> None:
    """UserError when two of the experiment's own files have one name: record/code/experiment/ keeps one of each."""
    by_name: dict[str, str] = {}
    for file in sorted(map(os.path.normpath, references(values))):
        if (other := by_name.setdefault(os.path.basename(file), file)) != file:
            raise UserError(f"two files are called {os.path.basename(file)}: {other} and {file}; rename one of them")


def localise(values: Any, prefix: str = "") -> Any:
    """`values` with each "dir/file.py:Name" as "file.py:Name", under `prefix`: as in record/code/experiment/."""
    if isinstance(values, dict):
        return {key: localise(value, prefix) for key, value in values.items()}
    if isinstance(values, list):
        return [localise(value, prefix) for value in values]
    if isinstance(values, str) and ".py:" in values:
        return f"{prefix}{Path(reference_file(values)).name}:{reference_name(values)}"
    return values


def snapshot(folder: Folder, resolved: JsonObject, step: int = 0) -> None:
    """Copy the source that runs into record/code/. An earlier, different copy is kept beside it."""
    target = folder.path / CODE
    if target.exists() and not changed_files(folder, resolved):
        return
    # copy everything under another name, so that record/code/ is whole whenever it is there
    unfinished = target.with_name(f".{target.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    copies = {ROOT / name: unfinished / name for name in source_files(ROOT)}
    copies |= {folder.path / name: unfinished / "experiment" / Path(name).name for name in references(resolved)}
    for source, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    # seal them: this user ran them
    try:
        seal(folder.path, unfinished)
    except (OSError, UserError, RuntimeError) as error:
        log.warning("%s cannot be sealed as yours; --trust will be asked for later (%s)", target, error)
    # then give the copies their names
    if target.exists():
        target.rename(target.with_name(f"code_until_step_{step}_{len(list(target.parent.glob('code_*')))}"))
    unfinished.rename(target)


def syntax(path: Path) -> str:
    """The syntax tree of a Python file as text: comments, layout, docstrings and the kit's version do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)]
    if path.name == VERSION_FILE:
        tree.body = [part for part in tree.body if not _is_version(part)]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_version(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["VERSION"]


def changed_files(folder: Folder, resolved: JsonObject, table: Mapping[str, bool] = RESULT_CODE) -> list[str]:
    """Files that a result depends on (see `table`) and whose code differs from the copy in record/code/."""
    frozen = find_code(folder.path)
    if not frozen.exists():
        return []
    names = {name for root in (frozen, ROOT) for name in source_files(root) if is_result_code(name, table)}
    pairs = {str(name): (frozen / name, ROOT / name) for name in names}
    pairs |= {name: (frozen / "experiment" / Path(name).name, folder.path / name) for name in references(resolved)}
    return sorted(name for name, (old, new) in pairs.items() if is_different(old, new))


def is_different(old: Path, new: Path) -> bool:
    """True when one of two files is missing, or they differ in more than the layout of Python code."""
    if not (old.is_file() and new.is_file()):
        return old.is_file() != new.is_file()
    if old.read_bytes() == new.read_bytes():
        return False
    try:
        return old.suffix != ".py" or syntax(old) != syntax(new)
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return True


def code_differences(one: Path, two: Path) -> list[str]:
    """Files whose syntax trees differ between two frozen copies, or that only one of them has."""
    names = {path.relative_to(root) for root in (one, two) for path in root.rglob("*.py")}
    return sorted(str(name) for name in names if is_different(one / name, two / name))


def pick_code(folder: Folder, asked: str | None, say: Callable[[str], None]) -> Literal["tree", "folder"]:
    """Whose code computes the outputs of a trained net: this tree's, or the folder's where the tree's has changed.

    The experiment's own files always run as their copies in record/code/, and do not count here. `asked`: --code.
    """
    changed = changed_files(folder, {}, INFERENCE_CODE)
    names = name_some(changed, 5)
    if asked == "tree" and changed:
        say(f"computed by this tree, as asked, though {names} changed since the training")
    if asked != "tree" and changed:
        say(f"{names} changed since the training: {folder.path / CODE} computes; --code tree: the code as it is now")
    if note := describe_other_code(folder):
        say(note)
    is_frozen = asked == "folder" or (asked is None and bool(changed))
    return "folder" if is_frozen else "tree"


def describe_other_code(folder: Folder) -> str:
    """What to say where other code than this tree's trained the net, and the folder keeps no copy of it."""
    changed = changed_since_listed(folder.path)
    if not changed:
        return ""
    names = name_some(changed, 5)
    return f"{names} changed since the training; {folder.path} keeps no copy of that code: this tree computes"


def changed_since_listed(folder: Path, table: Mapping[str, bool] = INFERENCE_CODE) -> list[str]:
    """Files of this tree that are not, byte for byte, those of the code that the folder lists and keeps no copy of."""
    listed = read_seals(folder)["files"]
    if find_code(folder).exists() or not listed:
        return []
    then = {name: digest for name, digest in listed.items() if is_result_code(Path(name), table)}
    tree = {path.as_posix(): ROOT / path for path in source_files(ROOT) if is_result_code(path, table)}
    now_there = {name: digest_file(path) for name, path in tree.items()}
    return sorted(name for name in then | now_there if then.get(name) != now_there.get(name))


# --- code that comes with a folder ------------------------------------------------------------------------


def run_frozen(folder: Folder, request: Request) -> None:
    """Replace this process by the frozen copy of train.py, with the same arguments. Does not return.

    UserError when there is none, or when this user has neither sealed nor trusted it.
    """
    script = folder.path / CODE / "train.py"
    if os.environ.get(MARKER):
        return
    if not script.is_file():
        raise UserError(f"--code folder: {folder.path} holds no {CODE}/train.py yet; leave --code out")
    check_frozen_code(folder.path, consent_of(request))
    words = [word for word in request.argv if word != "--trust"]  # older versions do not know it
    os.execve(sys.executable, [sys.executable, str(script), *words], os.environ | {MARKER: "1"})


def check_frozen_code(folder: Path, consent: Consent) -> None:
    """UserError unless the frozen copy of the kit in `folder` may run as a program; see check_trust.

    What Python compiled there before is removed: it would run in place of the files that were checked.
    """
    if not find_code(folder).exists():
        raise UserError(f"--code folder: {folder} keeps no copy of its code ({CODE}): leave --code out")
    check_trust(folder, "its frozen code", consent)
    for path in find_code(folder).rglob("__pycache__"):
        try:
            shutil.rmtree(path) if not path.is_symlink() else path.unlink()
        except OSError:  # a folder of others: Python reads compiled files from elsewhere
            os.environ["PYTHONPYCACHEPREFIX"] = str(cache_home() / "compiled")


def check_own_files(folder: Folder, values: JsonObject, request: Request) -> None:
    """UserError unless the files of its own that a trained folder brings may run; see check_trust. Rank 0 checks."""
    names = sorted(references(values))
    if names and folder.is_main:
        check_trust(folder.path, f"its own {', '.join(names)}", consent_of(request), ROOT)


def recorded_files(folder: Path, values: JsonObject, consent: Consent) -> tuple[JsonObject, Path]:
    """(`values` of a record or of a weights file, what their "file.py:Name" are relative to), for code that may run.

    Files run only as their copies in record/code/experiment/, whatever path the record names, and only if this user
    sealed or trusts them. UserError otherwise. Values without files of their own are relative to the folder.
    """
    names = sorted(references(values))
    if not names:
        return values, folder
    copies = folder / CODE / "experiment"
    for name in names:
        if not (copies / Path(name).name).is_file():
            raise UserError(
                f"{folder}: its record names the code {name}, which runs only as its copy in {CODE}/experiment/; "
                f"there is no {copies / Path(name).name}"
            )
    check_trust(folder, f"its own {', '.join(names)}", consent, ROOT)
    return localise(values), copies


def consent_of(request: Request) -> Consent:
    """What the command line of train.py says about the code of others."""
    say = partial(print, file=sys.stderr) if request.json else print
    return Consent(request.trust, ["python", "train.py", *request.argv], say)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@functools.cache
def surroundings() -> tuple[dict[str, str], dict[str, Any] | None]:
    """(version of every installed package, what git says of the code, or None), as of the first call."""
    found = (distribution.metadata for distribution in importlib.metadata.distributions())
    packages = {metadata["Name"]: metadata["Version"] for metadata in found if metadata["Name"]}
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return packages, None
    branch, status = _git("rev-parse", "--abbrev-ref", "HEAD"), _git("status", "--porcelain")
    git = {"commit": commit.strip(), "branch": (branch or "").strip(), "dirty": bool(status)}
    return packages, git


def write_meta(folder: Folder, **fields: Any) -> None:
    """record/meta.json, requirements.txt and diff.patch at a start; each start adds a line under "sessions"."""
    old = folder.meta()
    packages, git = surroundings()
    session = {"command": sys.argv, "start": now(), "host": socket.gethostname(), "pid": os.getpid()}
    session |= {key: fields.pop(key) for key in ("from_step", "accepted") if fields.get(key) is not None}
    versions = {
        name: packages.get(name)
        for name in ("torch", "torchvision", "albumentations", "numpy", "timm")
        if name in packages
    }
    meta = {
        "kit": VERSION,
        "command": sys.argv,
        "start": old.get("start", session["start"]),
        "end": None,
        "host": session["host"],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "git": git,
        **fields,
        "sessions": [*old.get("sessions", []), session],
    }
    meta |= {"path": str(folder.path.resolve()), "copied_from": old.get("copied_from")}
    if folder.identity and folder.identity.copied_from:
        meta["copied_from"] = folder.identity.copied_from
    folder.write_record(META, meta)
    lines = sorted(f"{name}=={version}" for name, version in packages.items())
    write_atomic(folder.path / REQUIREMENTS, "\n".join(lines) + "\n")
    if git and git["dirty"] and (patch := _git("diff", "HEAD")):
        write_atomic(folder.path / DIFF_PATCH, patch)


def update_meta(folder: Folder, **fields: Any) -> None:
    """Change fields of record/meta.json; a field that becomes None is left out."""
    meta = folder.meta() | fields
    folder.write_record(META, {key: value for key, value in meta.items() if key not in fields or value is not None})


def same(old: Any, new: Any) -> bool:
    """Equality of JSON values: 1 and 1.0 are the same number, 1 and true are the same switch."""
    return json.loads(json.dumps(old)) == json.loads(json.dumps(new))
