"""The folder under random operations: nothing is lost without a word, nothing is attributed to what did not make it."""

import json
import os
import subprocess
import sys

import pytest
from kit import ROOT


def run_model(*flags: object) -> dict:
    """tests/tools/folder_model.py in a process of its own; its last lines, a JSON object. Fails at a violation."""
    command = [sys.executable, str(ROOT / "tests/tools/folder_model.py"), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.rindex("\n{") if "\n{" in done.stdout else 0 :])


@pytest.mark.timeout(600)
def test_kept_sequences():
    assert run_model("--kept")["sequences"] >= 20


@pytest.mark.slow
@pytest.mark.timeout(15000)
def test_1000_random_sequences():
    counts = run_model("--sequences", 1000, "--seed", 1)
    assert counts["sequences"] >= 1000
    assert counts["operations"] >= 12 * counts["sequences"]


@pytest.mark.slow
@pytest.mark.timeout(9000)
def test_500_kills_with_scratch_copies_moves_and_restarts():
    assert run_model("--kills", 500, "--seed", 1)["kills"] >= 500
