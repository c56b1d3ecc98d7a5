"""What an experiment folder holds, read without the kit; and files that are damaged by hand."""

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = (
    "weights/best.safetensors",
    "weights/last.safetensors",
    "metrics_val_best_weights.json",
    "metrics_val_last_weights.json",
)
LEDGER, TEST = "record/test_looks.jsonl", "metrics_test_best.json"


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read(path: Path) -> Any:
    """JSON, None where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None


# --- what a folder holds ---------------------------------------------------------------------------------


@dataclass
class Holding:
    """The results in one folder or attempt: digests of its files, history rows without clocks, looks at the test."""

    files: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)
    test: str = ""

    @classmethod
    def of(cls, folder: Path) -> "Holding":
        files = {name: sha(folder / name) for name in RESULTS if (folder / name).is_file()}
        rows = read(folder / "history.json")
        if not is_history(rows):
            rows = (last_state(folder) or {}).get("history", [])
        rows = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]
        looks = (folder / LEDGER).read_text(errors="replace").splitlines() if (folder / LEDGER).is_file() else []
        return cls(files, rows, looks, sha(folder / TEST) if (folder / TEST).is_file() else "")

    def goes_on_in(self, later: "Holding") -> bool:
        """True when `later` has the rows of this one, perhaps more."""
        return bool(self.rows) and later.rows[: len(self.rows)] == self.rows

    def is_kept_by(self, later: "Holding", free: set[str]) -> bool:
        """True when `later` holds all of these results, or is the same run further on; `free`: files that may differ."""
        names = [name for name in self.files if name not in free]
        same = all(later.files.get(name) == self.files[name] for name in names)
        return (same or self.goes_on_in(later)) and (LEDGER in free or later.looks[: len(self.looks)] == self.looks)


def is_history(rows: Any) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows)


def last_state(folder: Path) -> dict[str, Any] | None:
    """The committed state of a folder, None where there is none."""
    import torch

    manifest = read(folder / "checkpoints/manifest.json")
    with contextlib.suppress(Exception):
        return torch.load(folder / "checkpoints" / manifest["last"]["file"], weights_only=True)
    return None


def attempts(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "attempts").glob("*") if path.is_dir())


def linked_folders(folder: Path) -> set[str]:
    """Folders on scratch disk that links of an experiment, or of its attempts, lead to."""
    links = [*folder.glob("*"), *folder.glob("attempts/*/*")]
    return {os.path.realpath(path) for path in links if path.is_symlink()}


def stamp(folder: Path, borrowed: set[str]) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file, those on scratch disk included unless they are `borrowed`."""
    found = {}
    for current, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(current, name)) not in borrowed]
        for name in names:
            with contextlib.suppress(OSError):
                status = os.stat(os.path.join(current, name))
                found[os.path.join(current, name)] = (status.st_size, status.st_mtime_ns)
    return found


# --- damage ---


def flip(content: bytes, bit: int) -> bytes:
    wrong = bytearray(content or b"\0")
    place = bit * 7919 % (len(wrong) * 8)
    wrong[place // 8] ^= 1 << place % 8
    return bytes(wrong)


def replace(path: Path, content: bytes) -> None:
    """A new file in the place of the old one; where `path` is a link, of the file that it names."""
    path = path.resolve()
    temporary = path.with_name(".changed")
    temporary.write_bytes(content)
    temporary.rename(path)


def exchange(one: Path, two: Path, both: bool) -> None:
    """`two` comes to `one` and, if `both`, the other way round."""
    aside = one.with_name(f".aside-{one.name}")
    one.rename(aside)
    copy = shutil.copytree if two.is_dir() else shutil.copy2
    copy(two, one)
    if both:
        shutil.rmtree(two) if two.is_dir() and not two.is_symlink() else two.unlink()
        copy(aside, two)
    shutil.rmtree(aside) if aside.is_dir() and not aside.is_symlink() else aside.unlink()


def differences(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], ignored: tuple[str, ...]
) -> list[str]:
    names = before.keys() | after.keys()
    return sorted(
        name for name in names if before.get(name) != after.get(name) and not any(word in name for word in ignored)
    )
