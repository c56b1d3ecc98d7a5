"""What proves a run: the code that ran, the command, versions, git, packages."""

import ast
import functools
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from folder.folder import Folder, now
from include import CODE, DIFF_PATCH, META, REQUIREMENTS, ROOT, VERSION
from utils import UserError, reference_file, reference_name, write_atomic, write_json

RESULT_CODE = (
    "train.py",
    "params",
    "model",
    "engine",
)  # what a result depends on
ROOMS = ("params", "model", "folder", "report", "engine", "search")
MARKER = "EXPERIMENT_FOLDERS_FROZEN"  # set while a frozen copy runs


def source_files(root: Path) -> list[Path]:
    """The kit's own source under `root`, relative: root modules and all rooms, with what report.html is made of."""
    found = [*root.glob("*.py")]
    found += [path for room in ROOMS for kind in ("py", "css", "js", "j2") for path in (root / room).rglob(f"*.{kind}")]
    return sorted(path.relative_to(root) for path in found)


def references(values: Any) -> set[str]:
    """The files that "file.py:Name" values anywhere in the parameters name."""
    if isinstance(values, dict):
        return set().union(*map(references, values.values())) if values else set()
    if isinstance(values, list):
        return set().union(*map(references, values)) if values else set()
    return {reference_file(values)} if isinstance(values, str) and ".py:" in values else set()


def localised(values: Any, prefix: str = "") -> Any:
    """`values` with each "dir/file.py:Name" as "file.py:Name", under `prefix`: as in record/code/experiment/."""
    if isinstance(values, dict):
        return {key: localised(value, prefix) for key, value in values.items()}
    if isinstance(values, list):
        return [localised(value, prefix) for value in values]
    if isinstance(values, str) and ".py:" in values:
        return f"{prefix}{Path(reference_file(values)).name}:{reference_name(values)}"
    return values


def snapshot(folder: Folder, resolved: dict[str, Any], step: int = 0) -> None:
    """Copy the source that runs into record/code/. An earlier, different copy is kept beside it."""
    target = folder.path / CODE
    if target.exists() and not changed_files(folder, resolved):
        return
    if target.exists():
        target.rename(target.with_name(f"code_until_step_{step}_{len(list(target.parent.glob('code_*')))}"))
    for name in source_files(ROOT):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    for name in references(resolved):
        copy = target / "experiment" / Path(name).name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder.path / name, copy)


def syntax(path: Path) -> str:
    """The syntax tree of a Python file as text: comments, layout and docstrings do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            node.body = body[1:]  # type: ignore[attr-defined]
    return ast.dump(tree)


def changed_files(folder: Folder, resolved: dict[str, Any]) -> list[str]:
    """Files that a result depends on and whose code differs from the copy in record/code/."""
    frozen = folder.path / CODE
    if not frozen.exists():
        return []
    names = {name for root in (frozen, ROOT) for name in source_files(root) if name.suffix == ".py"}
    pairs = {str(name): (frozen / name, ROOT / name) for name in names if name.parts[0] in RESULT_CODE}
    pairs |= {n: (frozen / "experiment" / Path(n).name, folder.path / n) for n in references(resolved)}
    return sorted(name for name, (old, new) in pairs.items() if _differ(old, new))


def _differ(old: Path, new: Path) -> bool:
    if not (old.is_file() and new.is_file()):
        return old.is_file() != new.is_file()
    if old.read_bytes() == new.read_bytes():
        return False
    try:
        return syntax(old) != syntax(new)
    except SyntaxError:
        return True


def code_differences(one: Path, two: Path) -> list[str]:
    """Files whose syntax trees differ between two frozen copies, or that only one of them has."""
    names = {path.relative_to(root) for root in (one, two) for path in root.rglob("*.py")}
    return sorted(str(name) for name in names if _differ(one / name, two / name))


def run_frozen(folder: Folder, argv: list[str]) -> None:
    """Replace this process by the frozen copy of train.py, with the same arguments. Does not return."""
    script = folder.path / CODE / "train.py"
    if os.environ.get(MARKER):
        return
    if not script.is_file():
        raise UserError(f"--code folder: {folder.path} holds no {CODE}/train.py yet; leave --code out")
    os.execve(sys.executable, [sys.executable, str(script), *argv], os.environ | {MARKER: "1"})


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
    """(version of every installed package, git's word on the code or None), as they are at the first call."""
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
    write_json(folder.path / META, meta)
    lines = sorted(f"{name}=={version}" for name, version in packages.items())
    write_atomic(folder.path / REQUIREMENTS, "\n".join(lines) + "\n")
    if git and git["dirty"] and (patch := _git("diff", "HEAD")):
        write_atomic(folder.path / DIFF_PATCH, patch)


def update_meta(folder: Folder, **fields: Any) -> None:
    write_json(folder.path / META, folder.meta() | fields)


def same(old: Any, new: Any) -> bool:
    """Equality of JSON values: 1 and 1.0 are the same number, 1 and true are the same switch."""
    return json.loads(json.dumps(old)) == json.loads(json.dumps(new))
