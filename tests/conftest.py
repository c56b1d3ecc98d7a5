"""The root of the kit and the tests' own tools can be imported; one thread per test process. What many tests train on."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
STATE = tempfile.mkdtemp(prefix="state-")  # the key that seals code; a user's own is not touched
os.environ["XDG_STATE_HOME"] = STATE
OWNER = os.getpid()
atexit.register(lambda: os.getpid() == OWNER and shutil.rmtree(STATE, ignore_errors=True))
for path in (Path(__file__).resolve().parent / "tools", Path(__file__).resolve().parent.parent):
    sys.path.insert(0, str(path))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """36 small images of 3 classes in each of train, valid and test."""
    from kit import make_dataset

    return make_dataset(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture
def train(data) -> Callable[..., tuple[int, str]]:
    """train.py on `data`: (folder, *flags) -> (exit code, what was printed)."""
    from kit import call

    return lambda folder, *argv: call("train", "--data_dir", data, "--model_dir", folder, *argv)
