"""Figures of many runs: what they say, that they can be read with three and with hundreds, and when they say nothing."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
from kit import call
from PIL import Image
from runs import make_history, make_run

import plot_results
from include import ROOT
from report.importance import importance, is_logarithmic
from report.plots import curves, parameters
from report.plots.ranking import rank_runs
from report.rows import read_rows
from report.tree import find_folders
from report.write_results import draw_figures
from utils import UserError


def rows_of(parent: Path):
    return read_rows(find_folders(parent), parent)[0]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert len(image.convert("L").getcolors()) > 20, "blank"
        return image.size


def grid(parent: Path, seeds: int = 3) -> Path:
    """Three learning rates, `seeds` seeds each; the second rate is the best on average, the third has the best run."""
    (parent / "params.json").parent.mkdir(parents=True, exist_ok=True)
    (parent / "params.json").write_text(json.dumps({"hyper_search": {"learning_rate": [0.01, 0.1, 1.0]}}))
    for rate, values in ((0.01, (0.5, 0.52, 0.51)), (0.1, (0.9, 0.91, 0.92)), (1.0, (0.95, 0.6, 0.7))):
        for seed in range(seeds):
            make_run(parent / f"learning_rate_{rate:g}__seed_{seed}", values[seed], learning_rate=rate, seed=seed)
    return parent


def random_search(parent: Path, number: int, noise: float = 0.01, effect: float = 1.0) -> Path:
    draw = random.Random(0)
    (parent / "params.json").parent.mkdir(parents=True, exist_ok=True)
    (parent / "params.json").write_text('{"hyper_search": {"learning_rate": {"min": 1e-4, "max": 1, "log": true}}}')
    for i in range(number):
        rate, ps, arch = 10 ** draw.uniform(-4, 0), draw.uniform(0, 0.5), draw.choice(["lenet", "resnet9"])
        signal = math.exp(-((math.log10(rate) + 2) ** 2)) * (1.0 if arch == "lenet" else 0.9)
        accuracy = min(0.99, max(0.1, 0.5 + 0.4 * effect * (signal - 0.5) + draw.gauss(0, noise)))
        pruned = i % 5 == 4
        make_run(
            parent / f"run_{i}",
            accuracy,
            "pruned" if pruned else "done",
            2 if pruned else 5,
            learning_rate=rate,
            ps=ps,
            arch=arch,
        )
    return parent


def test_replicates_are_one_setting_and_the_best_mean_comes_first(tmp_path):
    found = rank_runs(rows_of(grid(tmp_path)))
    assert [group[0].params["learning_rate"] for group in found.groups] == [0.1, 1.0, 0.01]
    assert found.keys == ["learning_rate"]
    assert found.metric == "accuracy"
    assert not found.minimize
    assert found.rows[0].params["learning_rate"] == 1.0  # the best single run is another one
    assert found.label(found.groups[0]) == "learning_rate 0.1 (3 seeds)"


def test_sorting_by_loss_is_the_other_way_round(tmp_path):
    found = rank_runs(rows_of(grid(tmp_path)), "loss")
    assert found.metric == "loss"
    assert found.minimize
    assert found.groups[0][0].params["learning_rate"] == 0.1
    with pytest.raises(UserError, match="accuracy"):
        rank_runs(rows_of(tmp_path), "acuracy")


def test_folds_are_replicates_too(tmp_path):
    for part in (1, 2):
        make_run(tmp_path / f"fold_{part}", 0.8 + part / 100, fold=[part, 2])
    found = rank_runs(rows_of(tmp_path))
    assert len(found.groups) == 1
    assert found.keys == []
    assert found.label(found.groups[0]) == "2 folds"


def test_a_setting_is_labelled_with_a_name_where_its_parameters_say_nothing_or_too_much(tmp_path):
    make_run(tmp_path / "alone", 0.8)
    one = rank_runs(rows_of(tmp_path))
    assert one.label(one.groups[0]) == "alone"
    long = "x" * 100
    for part in (1, 2):
        make_run(tmp_path / f"long_{part}", 0.8 + part / 100, fold=[part, 2], arch=long)
    found = rank_runs(rows_of(tmp_path))
    assert [found.label(group) for group in found.groups] == ["long_2 (2 folds)", "arch lenet"]


def test_the_band_covers_the_epochs_that_all_have(tmp_path):
    for seed, (epochs, best) in enumerate([(5, 0.9), (3, 0.7)]):
        make_run(tmp_path / f"seed_{seed}", best, epochs=epochs, seed=seed)
    rows = rows_of(tmp_path)
    epochs, mean, least, greatest = curves.mean_curve(rows, "val_accuracy")
    first, second = (make_history(e, b)[1]["val_accuracy"] for e, b in ((5, 0.9), (3, 0.7)))
    assert epochs == [1, 2, 3]
    assert mean[1] == pytest.approx((first + second) / 2)
    assert (least[1], greatest[1]) == (
        min(first, second),
        max(first, second),
    )
    assert curves.mean_curve(rows, "val_unknown") == ([], [], [], [])


def draw_all(parent: Path) -> list[Path]:
    return draw_figures(rank_runs(rows_of(parent)), parent)[0]


@pytest.mark.parametrize("number", [1, 3, 24, 300])
def test_pictures_of_few_and_of_many(tmp_path, number):
    written = draw_all(random_search(tmp_path, number))
    names = [path.name for path in written]
    assert names == {1: names[:1], 3: names[:2]}.get(number, ["history_plots.png", "parameters.png", "importance.png"])
    for path in written:
        width, height = size_of(path)
        assert 400 < width < 1700
        assert 150 < height < 1400
    first = {path: path.read_bytes() for path in written}
    assert draw_all(tmp_path) == written
    assert first == {path: path.read_bytes() for path in written}


def drawn(monkeypatch) -> list:
    """The figures that are drawn from now on."""
    figures, real = [], curves.drawing

    class Kept:
        def __init__(self, *arguments):
            self.context = real(*arguments)

        def __enter__(self):
            figures.append(self.context.__enter__())
            return figures[-1]

        def __exit__(self, *error):
            return self.context.__exit__(*error)

    monkeypatch.setattr(curves, "drawing", Kept)
    monkeypatch.setattr(parameters, "drawing", Kept)
    return figures


def test_what_the_curves_say(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    random_search(tmp_path, 40)
    curves.save_curves(tmp_path / "c.png", rank_runs(rows_of(tmp_path)))
    legend = figures[0].legends[0]
    lines = [text.get_text() for text in legend.get_texts()]
    assert len(lines) == 12
    assert lines[10:] == ["30 more", "pruned (8)"]
    assert legend.get_title().get_text() == "40 runs of 40 settings, best first by validation accuracy"
    panel = figures[0].axes[2]
    assert panel.get_title("left") == "validation loss"
    coloured = [line for line in panel.lines if len(line.get_xdata()) > 1]
    ends = [line for line in panel.lines if line.get_marker() == "x"]
    assert len(coloured) == 10
    assert len(panel.collections[0].get_segments()) == 30
    assert len(ends) == 8, "a pruned run ends where it ended"
    assert {line.get_xdata()[0] for line in ends} == {2}, "a pruned run ends where it ended"


def test_bands_over_seeds(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    curves.save_curves(tmp_path / "c.png", rank_runs(rows_of(grid(tmp_path))))
    title = figures[0].legends[0].get_title().get_text()
    assert title.endswith("line: mean over seeds, band: lowest to highest")
    assert title.startswith("9 runs of 3 settings")
    assert sum(type(c).__name__ == "FillBetweenPolyCollection" for c in figures[0].axes[3].collections) == 3


def test_axes_of_the_parameters(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    found = rank_runs(rows_of(random_search(tmp_path, 60)))
    parameters.save_parameters(tmp_path / "p.png", found, found.keys)
    panels = {panel.get_title("left"): panel for panel in figures[0].axes}
    assert set(panels) == {"learning_rate", "ps", "arch"}
    assert panels["learning_rate"].get_xscale() == "log"
    assert panels["ps"].get_xscale() == "linear"
    assert [text.get_text() for text in panels["arch"].get_xticklabels()] == ["lenet", "resnet9"]
    points = sum(len(c.get_offsets()) for c in panels["learning_rate"].collections)
    assert points == 60, "every run is a point"


def test_many_parameters_and_many_categories(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    for i in range(30):
        more = {f"arch_args.k{k}": i * (k + 1) for k in range(14)}
        make_run(
            tmp_path / f"run_{i}",
            0.5 + i / 100,
            arch=f"a very long name of a net, number {i}",
            **more,
            mixup=[None, 0.2][i % 2],
        )
    found = rank_runs(rows_of(tmp_path))
    parameters.save_parameters(tmp_path / "p.png", found, found.keys)
    titles = [panel.get_title("left") for panel in figures[0].axes if panel.get_title("left")]
    assert len(titles) == 12
    assert titles[0] == "arch (12 of 30 values)"
    assert "12 of 16 parameters" in figures[0].get_suptitle()


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.001, 0.01, 0.1], True), ([1, 2, 4], False), ([0, 0.1, 100], False), ([i / 100 for i in range(1, 100)], False)],
)
def test_logarithmic_axes(values, expected):
    assert is_logarithmic(values) is expected


# --- importance -----------------------------------------------------------------------------------------


def shares(parent: Path):
    found = rank_runs(rows_of(parent))
    return importance(found.groups, found.keys, found.value)


def test_importance_finds_what_matters(tmp_path):
    values, ground = shares(random_search(tmp_path, 60))
    assert list(values)[0] == "learning_rate"
    assert values["learning_rate"] > 0.7
    assert sum(values.values()) == pytest.approx(1)
    assert "n = 48 finished runs of 48 settings" in ground


def test_importance_refuses_noise(tmp_path):
    values, reason = shares(random_search(tmp_path, 60, noise=0.05, effect=0.0))
    assert values == {}
    assert "do not predict" in reason
    assert "n = 48" in reason


def test_importance_refuses_few_one_parameter_and_no_difference(tmp_path):
    values, reason = shares(random_search(tmp_path / "few", 8))
    assert values == {}
    assert reason == "8 finished settings are needed, there are 7"
    values, reason = shares(grid(tmp_path / "one"))
    assert values == {}
    assert "one parameter differs" in reason
    for i in range(12):
        make_run(tmp_path / f"same/run_{i}", 0.5, learning_rate=float(i + 1), ps=i / 20)
    assert "the same value" in shares(tmp_path / "same")[1]


def test_replicates_are_no_evidence_of_their_own(tmp_path):
    """Settings that are noise, each with seeds that agree: a forest that saw one seed of a setting knows the others."""
    draw = random.Random(1)
    for i in range(30):
        accuracy, rate, ps = draw.uniform(0.4, 0.9), draw.uniform(0.1, 1), draw.uniform(0, 0.5)
        for seed in range(3):
            make_run(tmp_path / f"run_{i}_{seed}", accuracy + seed / 1000, learning_rate=rate, ps=ps, seed=seed)
    values, reason = shares(tmp_path)
    assert values == {}
    assert "n = 90 finished runs of 30 settings" in reason


def test_an_importance_that_no_longer_holds_is_taken_away(tmp_path):
    random_search(tmp_path, 20)
    assert (tmp_path / "importance.png") in draw_all(tmp_path)
    for i in range(15):
        (tmp_path / f"run_{i}/metrics_val_best_weights.json").unlink()
    assert (tmp_path / "importance.png") not in draw_all(tmp_path)
    assert not (tmp_path / "importance.png").exists()


# --- the script -----------------------------------------------------------------------------------------


def test_plot_results_writes_pictures_and_pages(tmp_path):
    code, said = call("plot_results", "--parent_dir", grid(tmp_path))
    assert code == 0
    assert "no importance.png: one parameter differs" in said
    names = ["history_plots.png", "parameters.png", "report.html"]
    assert [line for line in said.splitlines() if not line.startswith("no ")] == [
        str(tmp_path / name) for name in names
    ]
    assert all((folder / "report.html").is_file() for folder in tmp_path.glob("learning_rate_*"))
    code, said = call("plot_results", "--parent_dir", tmp_path, "--json", "--sort", "loss")
    found = json.loads(said[said.index("{") :])
    assert code == 0
    assert found["runs"] == 9
    assert found["figure"] == str(tmp_path / "history_plots.png")


def test_out_is_that_one_figure(tmp_path):
    grid(tmp_path / "runs")
    code, said = call("plot_results", "--parent_dir", tmp_path / "runs", "--out", tmp_path / "curves.png")
    assert code == 0
    assert said.strip() == str(tmp_path / "curves.png")
    assert size_of(tmp_path / "curves.png")
    assert not list((tmp_path / "runs").rglob("report.html"))


def test_named_folders_and_a_single_one(tmp_path):
    grid(tmp_path)
    pair = [tmp_path / "learning_rate_1__seed_0", tmp_path / "learning_rate_0.1__seed_1"]
    code, _ = call("plot_results", *pair)
    assert code == 0
    assert "2 done" in (tmp_path / "report.html").read_text()
    code, _ = call("plot_results", pair[0])
    assert code == 0
    assert (pair[0] / "history_plots.png").exists()
    assert "<h1>learning_rate_1__seed_0" in (pair[0] / "report.html").read_text()


def test_rubbish_is_answered(tmp_path):
    (tmp_path / "empty").mkdir()
    grid(tmp_path / "runs")
    for arguments in (
        [],
        ["nowhere"],
        ["--parent_dir", tmp_path / "empty"],
        ["--parent_dir", tmp_path / "runs", "--sort", "x"],
        ["--parent_dir", tmp_path / "runs", "--seed=1"],
    ):
        code, said = call("plot_results", *arguments)
        assert code == 2, said
        assert said.startswith("error: "), said
        assert said.count("\n") == 1, said


def test_no_torch_for_figures_and_pages(tmp_path):
    random_search(tmp_path, 12)
    code = f"import sys, plot_results; plot_results.main(['--parent_dir', {str(tmp_path)!r}]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert plot_results.FIGURE == curves.CURVES
