"""Observers that look into the net see what is there, and leave it as it is."""

import csv
import json

import pytest
import torch
from kit import call, experiment, history, make_dataset, weights
from torch import nn

from engine.observers.probe import measure_layers
from engine.observers.table import Table, read_rows

LOOKING = ["activations", "gradients", "updates", "csv_steps", "system"]
SMALL = {"batch_size": 8, "save_summary_steps": 2, "num_epochs": 2, "precision": "fp32"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "colours")


def rows(folder, name):
    with open(folder / f"monitors/{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_layers_are_measured_as_by_hand():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5))
    net.append(nn.Sigmoid())
    with torch.no_grad():
        net[1].bias[2] = -100.0  # this channel is 0 behind the ReLU
        net[4].weight[1] = 0.0  # the same value for all images
        net[4].bias[1] = 50.0  # saturates the sigmoid
    images = torch.randn(6, 3, 8, 8)
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    random = torch.get_rng_state()
    measured = measure_layers(net.train(), images, torch.no_grad)
    assert list(measured) == ["0", "1", "2", "4", "5"]
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in net.modules())
    with torch.no_grad():
        after_conv = net[0](images)
        after_norm = net[1](after_conv).clone()
        after_sigmoid = net(images)
    assert measured["0"].mean == pytest.approx(after_conv.mean().item(), abs=1e-6)
    assert measured["0"].std == pytest.approx(after_conv.std().item(), abs=1e-6)
    assert measured["1"].mean == pytest.approx(after_norm.mean().item(), abs=1e-4)
    assert [measured[name].dead for name in measured] == pytest.approx([0, 0, 0.25, 0.2, 0.2])
    is_near = (after_sigmoid <= 0.01) | (after_sigmoid >= 0.99)
    assert measured["5"].saturated == pytest.approx(is_near.float().mean().item())
    assert measured["5"].saturated >= 0.2
    assert measured["2"].saturated is None


def test_a_layer_that_runs_twice_is_measured_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(self.layer(x))

    assert list(measure_layers(Twice(), torch.randn(4, 3), torch.no_grad)) == ["layer", "layer:2"]


def test_gradients_and_updates_are_those_of_the_step(data, tmp_path):
    """Plain SGD without decay moves a weight by minus rate times gradient: clipped, as the optimizer gets it."""
    folder = experiment(
        tmp_path / "e", **SMALL, observers=LOOKING, optimizer="sgd", momentum=0.0, wd=0.0, grad_clip=0.5
    )
    code, printed = call("train", "--data_dir", data, "--model_dir", folder)
    assert code == 0, printed
    gradients = rows(folder, "gradients")
    updates = {(row["step"], row["parameter"]): row for row in rows(folder, "updates")}
    rates = {row["step"]: float(row["learning_rate"]) for row in rows(folder, "steps")}
    assert gradients
    for row in gradients:
        moved = float(updates[row["step"], row["parameter"]]["update"])
        assert moved == pytest.approx(rates[row["step"]] * float(row["norm"]), rel=1e-3, abs=1e-9)
    norms = [float(row["norm"]) ** 2 for row in gradients if row["step"] == gradients[0]["step"]]
    assert sum(norms) ** 0.5 <= 0.5 + 1e-4
    (first, *_) = rows(folder, "steps")
    assert float(first["loss"]) > 0
    system = rows(folder, "system")
    assert all(0 <= float(row["waiting"]) <= 1 and float(row["peak_memory"]) > 50 for row in system)


@pytest.mark.parametrize("compiled", [0, 1])
def test_weights_are_the_same_bytes_with_every_observer_and_with_none(data, tmp_path, compiled):
    """Dropout and batch norm would show random numbers or statistics that a look has touched."""
    pytest.importorskip("tensorboard")
    changes = SMALL | {"ps": 0.3, "ema": 0.9, "compile": compiled}
    observers = {"none": [], "all": ["tensorboard", "live_plot", "histograms", "graph", *LOOKING]}
    folders = [experiment(tmp_path / name, **changes, observers=names) for name, names in observers.items()]
    for folder in folders:
        code, printed = call("train", "--data_dir", data, "--model_dir", folder)
        assert code == 0, printed
    assert weights(folders[0]) == weights(folders[1])
    assert history(folders[0]) == history(folders[1])
    assert {path.name for path in (folders[1] / "monitors").iterdir()} == {
        "activations.csv", "gradients.csv", "updates.csv", "steps.csv", "system.csv",
    }  # fmt: skip
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folders[1] / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert tags["graph"]
    assert "batch_train" in tags["images"]
    assert any(name.startswith("weights/") for name in tags["histograms"])
    assert {name.split("/")[0] for name in tags["scalars"]} >= {"activations", "gradients", "updates"}
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_without_observers_nothing_is_hooked(data, tmp_path, monkeypatch):

    from engine.observers.probe import Probe

    made = []
    monkeypatch.setattr(Probe, "__init__", lambda *_: made.append(1))
    folder = experiment(tmp_path / "e", **SMALL, observers=["tensorboard", "live_plot", "csv_steps", "system"])
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    assert not made


def test_what_tensorboard_would_show_needs_it(data, tmp_path):
    for name in ("histograms", "graph"):
        folder = experiment(tmp_path / name, **SMALL, observers=[name])
        code, printed = call("train", "--data_dir", data, "--model_dir", folder)
        assert code == 2
        assert f'"{name}" is shown in TensorBoard: add "tensorboard"' in printed
        assert not (folder / "record").exists()


def test_a_continued_run_has_each_row_once(data, tmp_path):
    whole = experiment(tmp_path / "whole", **(SMALL | {"num_epochs": 3}), observers=["csv_steps"])
    assert call("train", "--data_dir", data, "--model_dir", whole)[0] == 0
    folder = experiment(tmp_path / "e", **(SMALL | {"num_epochs": 3}), observers=["csv_steps"])
    assert call("train", "--data_dir", data, "--model_dir", folder, "--until", "1")[0] == 0
    path = folder / "monitors/steps.csv"
    kept = path.read_text()
    last = json.loads((folder / "history.json").read_text())[-1]["step"]
    # What a kill leaves: rows of steps that were not committed, the last of them cut off.
    path.write_text(f"{kept}{last + 2},2,0.5,0.1,0.5,9\n{last + 4},2,0.")
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    theirs, ours = rows(whole, "steps"), rows(folder, "steps")
    for row in (*theirs, *ours):
        del row["images_per_second"]
    assert ours == theirs


def test_a_table_keeps_what_it_read_and_takes_new_columns(tmp_path):
    path = tmp_path / "monitors/t.csv"
    table = Table(path)
    table.add([{"step": 1, "value": -0.5, "layer": '-a, "b"'}])
    table.add([{"step": 2, "value": 1e-9, "layer": "c", "new": 3}])
    again = Table(path, start_step=2)
    again.add([{"step": 3, "value": float("nan"), "layer": "d", "new": None}])
    assert [(row["step"], row["value"], row.get("new")) for row in read_rows(path)] == [
        ("1", "-0.5", ""), ("2", "1e-09", "3"), ("3", "nan", ""),
    ]  # fmt: skip
    assert path.read_text().count("'-a") == 1


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_missing_is_one_line(data, tmp_path, name, monkeypatch):
    monkeypatch.setattr("engine.observers.trackers.importlib.util.find_spec", lambda _: None)
    folder = experiment(tmp_path / name, **SMALL, observers=[name])
    code, printed = call("train", "--data_dir", data, "--model_dir", folder)
    assert code == 2
    assert f"pip install {name}" in printed
    assert not (folder / "record").exists()


def test_mlflow_goes_on_in_its_run_and_a_copy_has_another(data, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    folder = experiment(tmp_path / "e", **SMALL, observers=["mlflow"])
    assert call("train", "--data_dir", data, "--model_dir", folder, "--until", "1")[0] == 0
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    client = mlflow.tracking.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("experiment-folders").experiment_id])
    assert run.data.params["arch"] == json.loads((folder / "record/resolved.json").read_text())["arch"]
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "val.loss")]
    assert steps == [row["step"] for row in history(folder)]
    assert run.info.status == "FINISHED"


def test_wandb_goes_on_in_its_run(data, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = experiment(tmp_path / "e", **SMALL, observers=["wandb"])
    assert call("train", "--data_dir", data, "--model_dir", folder, "--until", "1")[0] == 0
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    ids = {path.name.rsplit("-", 1)[1] for path in (folder / "wandb").glob("offline-run-*")}
    assert len(ids) == 1
