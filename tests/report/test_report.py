"""Tables and figures over experiment folders, whatever state those are in."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import make_folder, make_history, write

import plot_results
import synthesize_results
from include import ROOT
from report import figures, image_sheets
from report.formats import to_csv, to_markdown
from report.rows import read_rows
from report.tables import make_table
from report.tree import find_folders
from utils import UserError


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    write(tmp_path / "params.json", {"hyper_search": {"learning_rate": [0.1, 0.2]}})
    make_folder(tmp_path / "lr_2", 0.8, learning_rate=0.2)
    make_folder(tmp_path / "lr_10", 0.9, learning_rate=1.0, test=0.85)
    make_folder(tmp_path / "deep/one|two", 0.7, learning_rate=0.1, arch_args={"n_filters": 8})
    make_folder(tmp_path / "lr_2/attempts/1", 0.99)  # an earlier attempt is no experiment
    make_folder(tmp_path / "here", 0.6, {"state": "running", "pid": os.getpid(), "host": socket.gethostname()})
    make_folder(tmp_path / "gone", 0.5, {"state": "running", "pid": 2**22 + 1, "host": socket.gethostname()})
    make_folder(tmp_path / "nan", 0.4, {"state": "failed", "message": "the loss is nan\nin epoch 3"})
    write(tmp_path / "new/params.json", {})
    damages = [
        ("metrics_val_best_weights.json", "[1, 2]"),
        ("record/status.json", '{"state"'),
        ("history.json", '{"a": 1}'),
        ("record/resolved.json", "[]"),
        ("metrics_test_best.json", '{"accuracy": "high"}'),
    ]
    for number, (name, content) in enumerate(damages):
        write(make_folder(tmp_path / f"bad_{number}", 0.95) / name, content)
    (make_folder(tmp_path / "bad_5", 0.95) / "metrics_val_best_weights.json").unlink()
    return tmp_path


def test_table_shows_what_differs_and_sorts_best_first(parent):
    rows, problems = read_rows(find_folders(parent), parent)
    table = make_table(rows)
    columns, cells = table.columns, table.lines
    assert columns[:5] == ["folder", "learning_rate", "arch_args.n_filters", "best_epoch", "epochs"]
    assert columns[5:7] == ["val_loss", "val_accuracy"]
    assert columns[7:] == ["last_accuracy", "test_accuracy", "test_looks", "seconds", "status"]
    assert [line["folder"] for line in cells] == ["lr_10", "lr_2", "deep/one|two", "here", "gone", "nan"]
    assert cells[0]["test_accuracy"] == 0.85
    assert cells[0]["test_looks"] == 2
    assert cells[1]["test_looks"] == 0
    assert cells[0]["seconds"] == 4.5
    assert [line["status"] for line in cells[3:]] == ["running", "killed", "failed"]
    assert problems["new"] == "not trained yet"
    assert "the loss is nan in epoch 3" in problems["nan"]
    assert sorted(problems) == sorted([f"bad_{n}" for n in range(6)] + ["here", "gone", "nan", "new"])
    assert all(problems[f"bad_{n}"].startswith("malformed") for n in range(6))


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("loss", "lr_10"),
        ("val_accuracy", "lr_10"),
        ("learning_rate", "deep/one|two"),
        ("folder", "deep/one|two"),
    ],
)
def test_sorting_knows_the_direction(parent, sort, first):
    rows, _ = read_rows(find_folders(parent), parent)
    cells = make_table(rows, sort).lines
    assert cells[0]["folder"] == first
    with pytest.raises(UserError, match="val_accuracy"):
        make_table(rows, "acuracy")


def test_recorded_direction_of_other_metrics(tmp_path):
    for name, ece in (("a", 0.3), ("b", 0.1)):
        folder = make_folder(tmp_path / name, 0.9, best_metric="metrics.py:ece")
        write(folder / "metrics_val_best_weights.json", {"epoch": 1, "loss": 1, "ece": ece})
        write(folder / "record/meta.json", {"minimize": ["loss", "ece"]})
    cells = make_table(read_rows(find_folders(tmp_path), tmp_path)[0]).lines
    assert [line["folder"] for line in cells] == ["b", "a"]


def test_csv_has_no_times_and_markdown_keeps_its_columns(parent):
    table = make_table(read_rows(find_folders(parent), parent)[0])
    assert "seconds" not in to_csv(table).splitlines()[0]
    lines = to_markdown(table).splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_synthesize_writes_and_prints(parent, capsys):
    assert synthesize_results.main(["--parent_dir", str(parent)]) == 0
    printed = capsys.readouterr().out
    assert printed == (parent / "results.md").read_text()
    assert "- `here`: running at epoch 3" in printed
    assert "- `new`: not trained yet" in printed
    first = (parent / "results.csv").read_bytes()
    assert synthesize_results.main(["--parent_dir", str(parent), "--format", "csv"]) == 0
    assert capsys.readouterr().out.encode() == first == (parent / "results.csv").read_bytes()
    folders = [str(parent / "lr_2"), str(parent / "lr_10")]
    assert synthesize_results.main([*folders, "--sort", "loss", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["folder"] for row in said["rows"]] == folders[::-1]
    assert said["files"] == []


def test_synthesize_refuses(parent, tmp_path):
    (tmp_path / "empty").mkdir()
    of = ["--parent_dir", str(parent)]
    for arguments in (
        [],
        ["nowhere"],
        ["--parent_dir", "nowhere"],
        ["--parent_dir", str(tmp_path / "empty")],
        [*of, str(parent)],
        [*of, "--sort", "x"],
        [*of, "--seed=1"],
    ):
        with pytest.raises(UserError):
            synthesize_results.main(arguments)
    assert not (parent / "results.md").exists()


def test_nothing_trained_is_no_crash(tmp_path, capsys):
    write(tmp_path / "a/params.json", {})
    assert synthesize_results.main(["--parent_dir", str(tmp_path)]) == 0
    assert "- `a`: not trained yet" in capsys.readouterr().out
    with pytest.raises(UserError, match="no folder with results"):
        plot_results.main(["--parent_dir", str(tmp_path)])


def test_tables_need_no_torch_and_are_quick(tmp_path):
    for number in range(200):
        make_folder(tmp_path / f"run_{number}", number / 200, learning_rate=number / 7)
    begun = time.perf_counter()
    rows, problems = read_rows(find_folders(tmp_path), tmp_path)
    make_table(rows)
    assert len(rows) == 200
    assert not problems
    assert time.perf_counter() - begun < 3
    code = """
import sys, evaluate, predict, synthesize_results, plot_results
heavy = {"torch", "numpy", "matplotlib", "sklearn", "PIL"} & set(sys.modules)
sys.exit(str(heavy) if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- figures --------------------------------------------------------------------------------------------


def picture(path: Path) -> tuple[int, int]:
    """The size of a figure that is not blank."""
    with Image.open(path) as image:
        assert "Software" not in image.info
        assert len(image.convert("L").getcolors()) > 20
        return image.size


def test_plot_results(parent, capsys):
    assert plot_results.main(["--parent_dir", str(parent)]) == 0
    out = capsys.readouterr()
    assert out.out.split()[0] == str(parent / "history_plots.png")
    assert "bad_1: malformed" in out.err
    assert picture(parent / "history_plots.png") > (800, 600)


@pytest.mark.parametrize("num_epochs", [1, 2, 200])
def test_history_figure(tmp_path, num_epochs):
    rows = make_history(num_epochs, val_f1=0.5, val_auc=None)
    for row in rows:
        row["learning_rate"] = [1e-4, 1e-3, 0.0]
    figures.save_history_figure(tmp_path / "a.png", rows, "accuracy", num_epochs)
    figures.save_history_figure(tmp_path / "b.png", rows, "accuracy", num_epochs)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert picture(tmp_path / "a.png")[0] > 900
    figures.save_history_figure(tmp_path / "none.png", [], "accuracy", None)
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("num_classes", [2, 10, 100, 300])
def test_confusion_matrix(tmp_path, num_classes):
    matrix = np.eye(num_classes, dtype=int) * 20
    matrix[0, 1], matrix[1] = 12_345, 0  # many, and a class that does not occur
    names = [f"$class_{number} 猫 with a name that is much too long for a label" for number in range(num_classes)]
    figures.save_confusion_matrix(tmp_path / "m.png", matrix, names, "title")
    width, height = picture(tmp_path / "m.png")
    assert 300 < width < 2200
    assert 300 < height < 2200


@pytest.mark.parametrize("mixed", [False, True])
def test_batch_sheet(tmp_path, mixed):
    class Loader:
        classes = ["a", "b" * 100]
        pinned = {"mean": [0.5] * 3, "std": [0.25] * 3}

        def batches(self, epoch: int, start_step: int = 0):
            labels = torch.tensor([[0.7, 0.3], [0.0, 1.0], [1.0, 0.0]]) if mixed else torch.tensor([0, 1, 1])
            yield torch.randn(3, 3, 40, 40), labels, torch.arange(3), torch.tensor([1.0, 1.0, 0.0])
            raise AssertionError("one batch is enough")

    image_sheets.save_batch_sheet(tmp_path / "batch.png", Loader())
    assert picture(tmp_path / "batch.png")[0] < 300  # two tiles: padding is not shown


def test_pixels_are_denormalised():
    images = (torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1) - 0.5) / 0.25
    assert image_sheets.to_pixels(images, [0.5] * 3, [0.25] * 3).tolist() == [[[[0, 128, 255]]]]
    assert figures.shorten("a  b\nc", 10) == "a b c"
    assert len(figures.shorten("x" * 50, 10)) == 10
