"""Small tools of the tests: tiny datasets, and the root scripts called in this process or as a user would."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
ROOMS = ("params", "model", "folder", "report", "engine", "search")
TINY = {
    "arch": "simple_cnn",
    "arch_args": {"n_filters": 4},
    "batch_size": 16,
    "num_epochs": 2,
    "observers": [],
    "threads": 1,
}


def copy_kit(target: Path) -> Path:
    """The kit's own source, root scripts and rooms, as a tree of its own that a test may change."""
    target.mkdir(parents=True, exist_ok=True)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, target)
    for room in ROOMS:
        shutil.copytree(ROOT / room, target / room, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def make_images(folder: Path, classes: int = 3, per_class: int = 12, side: int = 16, seed: int = 0) -> None:
    """Class folders of small PNGs that can be told apart: every class has a colour of its own."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        target = folder / f"class_{label}"
        target.mkdir(parents=True, exist_ok=True)
        colour = np.eye(3)[label % 3] * 150
        for number in range(per_class):
            pixels = rng.integers(0, 100, (side, side, 3)) + colour
            Image.fromarray(pixels.astype(np.uint8)).save(target / f"{number:03d}.png")


def make_dataset(folder: Path, splits: tuple[str, ...] = ("train", "valid", "test"), **kwargs) -> Path:
    for number, split in enumerate(splits):
        make_images(folder / split, seed=number, **kwargs)
    return folder


def experiment(folder: Path, **params) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(TINY | params))
    return folder


def call(script: str, *argv: object) -> tuple[int, str]:
    """(exit code, what was printed) of a root script called in this process."""
    from importlib import import_module

    from utils import UserError

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = import_module(script).main([str(word) for word in argv]) or 0
        except UserError as error:
            print(f"{error.prefix}{error}")
            code = error.code
    return code, output.getvalue()


def shell(script: str, *argv: object, **environment: str) -> subprocess.CompletedProcess:
    """A root script as a user would start it."""
    command = [sys.executable, str(ROOT / f"{script}.py"), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=240)


def interrupt(folder: Path, data: Path, *argv: str, when: str = "epoch 1/") -> int:
    """Start train.py as a process and stop it with SIGTERM as soon as its output says `when`; its exit code."""
    command = [sys.executable, str(ROOT / "train.py"), "--data_dir", str(data), "--model_dir", str(folder), *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        if when in line:
            process.send_signal(signal.SIGTERM)
            break
    process.stdout.read()
    return process.wait(timeout=60)


def wait_for(path: Path, process: subprocess.Popen | None = None, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end and (process is None or process.poll() is None):
        time.sleep(0.02)
    assert path.exists()


def copy_repository(target: Path) -> Path:
    """A copy of this repository, tests included, in which code may be changed; data/, logs and caches stay behind."""
    unwanted = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "attempts")

    def ignore(folder: str, names: list[str]) -> set[str]:
        at_root = {"data", "logs"} if Path(folder) == ROOT else set()
        return unwanted(folder, names) | at_root.intersection(names)

    return Path(shutil.copytree(ROOT, target, ignore=ignore))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def history(folder: Path) -> list[dict]:
    """The history without what a clock wrote."""
    rows = json.loads((folder / "history.json").read_text())
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def weights(folder: Path, which: str = "best") -> bytes:
    return (folder / "weights" / f"{which}.safetensors").read_bytes()


def gone_pid() -> int:
    """The pid of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        return process.pid
