"""experiments/tune_lr/run.sh, as it is shipped: run, paused with Ctrl-C, looked at, continued by the same command."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kit import ROOT, copy_kit, wait_for

pytestmark = pytest.mark.skipif(not (ROOT / "search_hyperparams.py").exists(), reason="needs search_hyperparams.py")
SHORT = ["--hyper_search.learning_rate=[0.01, 0.1]", "--search.seeds=1", "--num_epochs=3", "--threads=1"]


@pytest.fixture
def kit(tmp_path):
    """A copy of the kit, so that the checkout stays as it is."""
    copy = copy_kit(tmp_path / "kit")
    (copy / "experiments/tune_lr").mkdir(parents=True)
    for name in ("params.json", "run.sh"):
        shutil.copy(ROOT / "experiments/tune_lr" / name, copy / "experiments/tune_lr")
    return copy


def start(kit: Path) -> subprocess.Popen:
    """run.sh in a process group of its own, as a terminal gives it."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    script = kit / "experiments/tune_lr/run.sh"
    return subprocess.Popen(
        [script, *SHORT],
        cwd="/",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def states(parent: Path) -> dict[str, str]:
    return {
        path.parent.parent.name: json.loads(path.read_text())["state"] for path in parent.glob("*/record/status.json")
    }


def test_run_paused_looked_at_and_continued(kit):
    parent = kit / "experiments/tune_lr"
    process = start(kit)
    wait_for(parent / "learning_rate_0.01/history.json", process, seconds=200)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C goes to everything in the terminal
    printed, _ = process.communicate(timeout=100)
    assert process.returncode == 130, printed
    assert "the same command continues" in printed, printed
    assert (kit / "data/digits/train").is_dir(), "digits are built when they are missing"
    assert "running" not in states(parent).values()
    before = json.loads((parent / "learning_rate_0.01/history.json").read_text())

    table = subprocess.run(
        [sys.executable, kit / "synthesize_results.py", "--parent_dir", parent],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert table.returncode == 0, table.stderr
    assert "learning_rate_0.01" in table.stdout, table.stderr

    process = start(kit)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert states(parent) == {"learning_rate_0.01": "done", "learning_rate_0.1": "done"}
    after = json.loads((parent / "learning_rate_0.01/history.json").read_text())
    assert len(after) == 3, "what was trained is kept"
    assert after[: len(before)] == before, "what was trained is kept"
    for name in ("results.md", "results.csv", "history_plots.png", "report.html"):
        assert (parent / name).stat().st_size > 100
    assert "learning_rate" in (parent / "results.csv").read_text()

    weights = {path: path.stat().st_mtime_ns for path in parent.glob("*/weights/*.safetensors")}
    assert start(kit).wait(timeout=240) == 0
    assert {path: path.stat().st_mtime_ns for path in parent.glob("*/weights/*.safetensors")} == weights
