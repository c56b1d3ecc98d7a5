"""What metric names mean, and the rows of a history."""

import pytest

from folder.history import (
    best_row,
    flat_metrics,
    history_csv,
    is_minimized,
    join_column,
    monitored_column,
    recorded_minimized,
    split_column,
    training_column,
    validation_column,
)
from utils import reference_file, reference_name


@pytest.mark.parametrize(
    ("name", "file", "short"),
    [
        ("accuracy", "", "accuracy"),
        ("metrics.py:f2", "metrics.py", "f2"),
        ("../a b/m.py:Name", "../a b/m.py", "Name"),
    ],
)
def test_the_short_name_of_a_reference(name, file, short):
    assert (reference_file(name), reference_name(name)) == (file, short)


@pytest.mark.parametrize(
    ("column", "parts"),
    [
        ("val_accuracy", ("val", "accuracy")),
        ("train_loss", ("train", "loss")),
        ("last_top5_accuracy", ("last", "top5_accuracy")),
        ("test_f1", ("test", "f1")),
        ("test_looks", ("", "test_looks")),
        ("test", ("", "test")),
        ("val_", ("", "val_")),
        ("valid_fraction", ("", "valid_fraction")),
        ("learning_rate", ("", "learning_rate")),
        ("epoch", ("", "epoch")),
    ],
)
def test_a_column_says_its_split_and_metric(column, parts):
    assert split_column(column) == parts
    assert not parts[0] or join_column(*parts) == column


def test_columns_of_a_metric():
    assert (validation_column("f1"), training_column("f1")) == ("val_f1", "train_f1")


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("f1", "val_f1"),
        ("val_f1", "val_f1"),
        ("train_loss", "train_loss"),
        ("m.py:f1", "val_f1"),
        ("test_f1", "val_test_f1"),
    ],
)
def test_a_bare_name_means_the_validation_value(name, column):
    assert monitored_column(name) == column


def test_less_is_better_for_the_loss_and_for_what_is_recorded():
    assert is_minimized("loss", [])
    assert is_minimized("ece", ["ece"])
    assert not is_minimized("accuracy", ["ece"])
    assert recorded_minimized({"minimize": ["ece", "loss"]}) == {"ece", "loss"}
    assert recorded_minimized({"minimize": None}) == recorded_minimized({}) == frozenset()


def test_the_best_row_is_the_earliest_of_equals_and_knows_the_direction():
    rows = [
        {"epoch": i, "val_loss": loss, "val_accuracy": right}
        for i, (loss, right) in enumerate([(3, 0.1), (1, 0.5), (1, 0.5), (None, None)], start=1)
    ]
    assert best_row(rows, "loss", [])["epoch"] == 2
    assert best_row(rows, "accuracy", [])["epoch"] == 2
    assert best_row(rows, "accuracy", ["accuracy"])["epoch"] == 1
    assert best_row(rows[3:], "loss", []) is None


def test_what_is_written_of_a_row():
    row = {"epoch": 2, "train_loss": 1.0, "val_loss": 0.5, "val_accuracy": 0.9, "seconds": 3.0}
    assert flat_metrics(row) == {"epoch": 2, "loss": 0.5, "accuracy": 0.9}
    assert list(flat_metrics(row)) == ["epoch", "loss", "accuracy"]


def test_the_csv_has_a_line_per_epoch():
    assert history_csv([]) == ""
    assert history_csv([{"epoch": 1, "learning_rate": [0.1, 0.2]}]) == 'epoch,learning_rate\n1,"[0.1, 0.2]"\n'
