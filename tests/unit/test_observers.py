"""Observers see a run go by; what they leave can be read back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from kit import ROOT
from PIL import Image

from engine.loop import Epoch, Step
from engine.observers import OBSERVERS, LivePlot, Observer, make_observers
from params import Params, load
from report.figures import save_history_figure
from utils import UserError, write_json


def params(folder: Path, **changes: object) -> Params:
    write_json(folder / "params.json", changes)
    return load(folder)


def step(number: int, rates: list[float]) -> Step:
    return Step(1, number, rates, 1.0 / number, {"loss": 1.0 / number}, 50.0)


def epoch(number: int, at_step: int) -> Epoch:
    row = {"epoch": number, "step": at_step, "learning_rate": 0.1, "train_loss": 1.0, "train_accuracy": 0.4}
    row |= {"val_loss": 0.9, "val_accuracy": 0.5, "val_auc": None, "seconds": 1.0, "images_per_second": 50.0}
    return Epoch(number, at_step, row, best=row)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, round(e.value, 4)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_and_a_resumed_run_has_no_doubles(tmp_path):
    (observer,) = make_observers(["tensorboard"], tmp_path, params(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["params.json"]  # nothing before the first event
    for number in (10, 20, 30):
        observer.step(step(number, [0.1, 0.1, 0.1]))
    observer.epoch(epoch(1, 20), [])
    observer.close()
    (again,) = make_observers(["tensorboard"], tmp_path, params(tmp_path), start_step=20)
    again.step(step(30, [0.1, 0.2, 0.3]))
    again.close()
    again.close()
    found = scalars(tmp_path)
    assert found["train/loss"] == [(10, 0.1), (20, 0.05), (30, 0.0333)]
    assert found["learning_rate"] == [(10, 0.1), (20, 0.1)]
    assert found["learning_rate/group_3"] == [(30, 0.3)]
    assert found["images_per_second"][0] == (10, 50.0)
    assert found["train/accuracy"] == [(20, 0.4)]
    assert found["val/loss"] == [(20, 0.9)]
    assert "val/auc" not in found


def test_live_plot_is_drawn_seldom_when_it_is_slow(tmp_path, monkeypatch):
    (tmp_path / "metrics_val_best_weights.json").write_text(json.dumps({"epoch": 1, "loss": 0.9}))
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("engine.observers.live_plot.time.monotonic", lambda: clock.now)
    drawn: list[int] = []

    def draw(path, history, metric, best_epoch):
        clock.now += 0.5  # what a drawing takes; 2 % of 25 s
        drawn.append(len(history))
        save_history_figure(path, history, metric, best_epoch)

    monkeypatch.setattr("engine.observers.live_plot.save_history_figure", draw)
    observer, history = LivePlot(tmp_path, params(tmp_path)), []
    for number in range(1, 31):
        clock.now += 5.0
        event = epoch(number, number)
        history.append(event.row)
        observer.epoch(event, history)
    assert drawn == [1, *range(6, 31, 5)]  # the first whatever it costs
    with Image.open(tmp_path / "train_history.png") as image:
        assert image.size[0] > 900


def test_an_observer_of_the_experiments_own(tmp_path):
    (tmp_path / "watch.py").write_text(
        "from engine.observers import Observer\n"
        "class Count(Observer):\n"
        "    count = 0\n"
        "    def step(self, step):\n"
        "        self.count += 1\n"
        "class NoObserver:\n"
        "    def __init__(self, folder, params, start_step=0): pass\n"
        "def nothing(): pass\n"
    )
    (observer,) = make_observers(["watch.py:Count"], tmp_path, params(tmp_path))
    observer.step(step(1, [0.1]))
    observer.epoch(epoch(1, 1), [])
    observer.close()
    assert observer.count == 1
    assert isinstance(observer, Observer)
    for name, says in [
        ("watch.py:NoObserver", "no method step"),
        ("watch.py:nothing", "cannot be made"),
        ("watch.py:Cuont", "did you mean 'Count'"),
        ("tensorbord", "did you mean 'tensorboard'"),
    ]:
        with pytest.raises(UserError, match=says):
            make_observers([name], tmp_path, params(tmp_path))


def test_registry():
    names = "tensorboard live_plot activations gradients updates histograms graph csv_steps system wandb mlflow"
    assert set(OBSERVERS) == set(names.split())
    assert make_observers([], Path(), params(Path())) == []


FULL_DISK = """
import sys
from pathlib import Path
from tensorboard.compat.tensorflow_stub.io import gfile
from engine.observers import TensorBoard
from test_observers import epoch, params, step
folder, num_events = Path(sys.argv[1]), int(sys.argv[2])
write = gfile.LocalFileSystem._write
written = []
def write_until_full(self, filename, content, mode):
    written.append(filename)
    return write(self, "/dev/full" if len(written) > num_events else filename, content, mode)
gfile.LocalFileSystem._write = write_until_full
observer = TensorBoard(folder, params(folder))
try:
    for number in range(1, 100):
        observer.step(step(number, [0.1]))
        observer.epoch(epoch(number, number), [])
except OSError as error:
    print(error.filename, error.strerror)
observer.close()
"""


@pytest.mark.parametrize("num_events", [0, 40], ids=["at the first event", "later"])
def test_a_full_disk_under_tensorboard_is_one_line(tmp_path, num_events):
    """The device is full for real: the events go to /dev/full once `num_events` writes have succeeded.

    In a process of its own: tensorboard's thread may fail last of all, and pytest hides what threads print.
    """
    pytest.importorskip("tensorboard")
    words = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(num_events)]
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "tests/tools", "tests/unit"))
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'tensorboard'} No space left on device\n"
    assert "Traceback" not in done.stderr
    assert "Exception in" not in done.stderr
