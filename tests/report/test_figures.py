"""What the figures of one run show: lines, scales, limits and labels, by hand."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from runs import make_history

from report import figures
from report.figures import (
    format_epoch_axis,
    history_metrics,
    plot_curve,
    rate_series,
    save_confusion_matrix,
    save_history_figure,
    series,
    shorten,
    use_log_scale_if_wide,
)
from report.image_sheets import describe_label, save_sheet, to_pixels


@pytest.fixture
def axes():
    from matplotlib.figure import Figure

    return Figure().subplots()


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, as matplotlib's objects."""
    kept, real = [], figures.drawing

    class Kept:
        def __init__(self, *arguments, **keywords):
            self.context = real(*arguments, **keywords)

        def __enter__(self):
            kept.append(self.context.__enter__())
            return kept[-1]

        def __exit__(self, *error):
            return self.context.__exit__(*error)

    monkeypatch.setattr(figures, "drawing", Kept)
    return kept


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("a  b\nc", 10, "a b c"),
        ("abcdefghij", 10, "abcdefghij"),
        ("abcdefghijk", 10, "abcdef…ijk"),  # two thirds of what is left before the dots
        ("", 10, "''"),
        ("abcdef", 2, "…f"),
    ],
)
def test_long_texts_lose_their_middle(text, length, expected):
    assert shorten(text, length) == expected


# --- curves ---------------------------------------------------------------------------------------------


def test_metrics_of_a_history():
    history = [{"val_f1": 1, "epoch": 1}, {"val_loss": 1, "val_auc": 1, "train_only": 1}]
    assert history_metrics(history, ["auc", "absent"]) == ["loss", "auc", "f1"]
    assert history_metrics([]) == []


def test_series_have_gaps():
    values = series([{"a": 1}, {"a": None}, {}, {"a": [1]}, {"a": 2.5}], "a")
    assert values[0] == 1.0
    assert values[4] == 2.5
    assert all(map(math.isnan, values[1:4]))


def test_learning_rates_by_group():
    history = [{"learning_rate": 0.1}, {"learning_rate": [0.2, 0.3]}, {}]
    first, second = rate_series(history)
    assert first[:2] == [0.1, 0.2]
    assert math.isnan(first[2])
    assert second[1] == 0.3
    assert math.isnan(second[0])
    assert rate_series(history, repeats_last=True)[1][:2] == [0.1, 0.3]
    assert rate_series([]) == []


@pytest.mark.parametrize(("num", "marker"), [(1, "o"), (20, "o"), (21, "")])
def test_few_points_have_markers(axes, num, marker):
    plot_curve(axes, range(num), range(num))
    assert axes.lines[0].get_marker() == (marker or "")


@pytest.mark.parametrize(("epochs", "limits"), [([1], (0.5, 1.5)), ([1, 25], (0.5, 25.5)), ([1, 101], (-1, 103))])
def test_limits_of_the_epochs(axes, epochs, limits):
    format_epoch_axis(axes, epochs)
    assert axes.get_xlim() == pytest.approx(limits)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1, 30], "linear"),
        ([1, 30.01], "log"),
        ([0, 100], "linear"),
        ([-1, 100], "linear"),
        ([1, math.nan, 100, math.inf], "log"),
        ([math.nan], "linear"),
        ([], "linear"),
    ],
)
def test_wide_values_get_a_logarithmic_axis(axes, values, scale):
    use_log_scale_if_wide(axes, values)
    assert axes.get_yscale() == scale


def test_the_figure_of_a_run(tmp_path, drawn):
    history = make_history(4, 0.8, val_f1=0.5)
    save_history_figure(tmp_path / "a.png", history, "accuracy", 3)
    (figure,) = drawn
    panels = {panel.get_title("left").split("   ")[0]: panel for panel in figure.axes if panel.get_title("left")}
    assert list(panels) == ["loss", "accuracy", "f1", "learning rate"]
    assert figure.get_size_inches().tolist() == pytest.approx([9.4, 7.0])
    accuracy = history[2]["val_accuracy"]
    assert panels["accuracy"].get_title("left") == f"accuracy   {accuracy:.4f} at the best epoch"
    train, valid, _, ring = panels["accuracy"].lines
    assert (train.get_label(), valid.get_label(), ring.get_label()) == ("train", "valid", "best epoch: 3")
    assert list(valid.get_ydata()) == [row["val_accuracy"] for row in history]
    assert list(train.get_ydata()) == [row["train_accuracy"] for row in history]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([3], [accuracy])
    assert panels["f1"].lines[0].get_label() == "valid", "a metric that training does not have"
    assert panels["learning rate"].get_ylim()[0] == 0
    assert panels["learning rate"].get_legend() is None


@pytest.mark.parametrize(("num_metrics", "shape"), [(0, (2, 1)), (1, (3, 1)), (2, (2, 2)), (3, (3, 2)), (5, (3, 3))])
def test_panels_are_arranged(tmp_path, drawn, num_metrics, shape):
    more = {f"val_m{i}": 0.5 for i in range(num_metrics)}
    history = [{"epoch": 1, "learning_rate": 0.1, "val_loss": 1.0, **more}]
    save_history_figure(tmp_path / "a.png", history)
    assert drawn[0].get_size_inches().tolist() == pytest.approx([4.7 * shape[0], 3.5 * shape[1]])
    assert sum(panel.axison for panel in drawn[0].axes) == num_metrics + 2


def test_a_best_epoch_without_a_value_is_not_marked(tmp_path, drawn):
    history = [{"epoch": 1, "learning_rate": 0.1, "val_loss": 1.0, "val_auc": None}]
    save_history_figure(tmp_path / "a.png", history, "auc", 1)
    loss, auc, _ = drawn[0].axes
    assert loss.get_title("left") == "loss   1.0000 at the best epoch"
    assert auc.get_title("left") == "auc"
    save_history_figure(tmp_path / "a.png", history, "auc", None)
    assert drawn[1].axes[0].get_title("left") == "loss"


def test_learning_rates_of_groups_share_a_logarithmic_axis(tmp_path, drawn):
    history = [{"epoch": n, "learning_rate": [1e-5 / n, 1e-3 / n, 0.1 / n], "val_loss": 1.0} for n in (1, 2)]
    save_history_figure(tmp_path / "a.png", history)
    panel = drawn[0].axes[1]
    assert panel.get_yscale() == "log"
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["body, early", "body, late", "head"]
    # four decades below the largest rate, though the smallest one is still lower
    assert panel.get_ylim()[0] == pytest.approx(1e-5)
    near = [{"epoch": 1, "learning_rate": [0.01, 0.5], "val_loss": 1.0}]
    save_history_figure(tmp_path / "a.png", near)
    panel = drawn[1].axes[1]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["layer group 1", "layer group 2"]
    assert panel.get_ylim()[0] == pytest.approx(0.008)


# --- confusion matrix -----------------------------------------------------------------------------------


def test_colours_are_shares_of_a_row_and_counts_are_written(tmp_path, drawn):
    matrix = np.array([[3, 1, 0], [0, 0, 0], [12_400, 0, 0]])
    save_confusion_matrix(tmp_path / "m.png", matrix, ["a", "b", "c"], "title")
    panel = drawn[0].axes[0]
    assert panel.images[0].get_array().tolist() == [[0.75, 0.25, 0], [0, 0, 0], [1, 0, 0]]
    texts = {(text.get_position(), text.get_text(), text.get_color()) for text in panel.texts}
    assert texts == {((0, 0), "3", "white"), ((1, 0), "1", "#222222"), ((0, 2), "12k", "white")}
    assert (panel.get_xlabel(), panel.get_ylabel(), panel.get_title("left")) == ("predicted", "true", "title")


@pytest.mark.parametrize(("num_classes", "num_texts"), [(30, 30), (31, 0)])
def test_counts_are_written_while_they_fit(tmp_path, drawn, num_classes, num_texts):
    save_confusion_matrix(tmp_path / "m.png", np.eye(num_classes, dtype=int), [str(i) for i in range(num_classes)])
    assert len(drawn[0].axes[0].texts) == num_texts


# --- sheets of images -----------------------------------------------------------------------------------


def test_images_stand_in_rows_above_their_captions(tmp_path):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    images = np.array([np.full((4, 4, 3), colour, np.uint8) for colour in colours])
    save_sheet(tmp_path / "s.png", images, [["a"], ["b", "second line"], []], columns=2)
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.size == (10 + 2 * 138, 10 + 2 * (128 + 2 * 15 + 6 + 10))
        centres = [(74, 74), (74 + 138, 74), (74, 74 + 174)]
        assert [sheet.getpixel(centre) for centre in centres] == colours
        assert sheet.getpixel((74 + 138, 74 + 174)) == (255, 255, 255)


def test_pixels_are_clipped():
    images = torch.tensor([-1.0, 0.2, 3.0]).view(1, 3, 1, 1)
    assert to_pixels(images, [0.5] * 3, [0.5] * 3).tolist() == [[[[0, 153, 255]]]]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (torch.tensor(1), ["dog"]),
        (torch.tensor([1.0, 0.0, 0.0]), ["cat"]),
        (torch.tensor([0.3, 0.0, 0.7]), ["cow 0.70", "cat 0.30"]),
        (torch.tensor([0.004, 0.996, 0.0]), ["dog"]),
    ],
)
def test_labels_in_words(label, expected):
    assert describe_label(label, ["cat", "dog", "cow"]) == expected
