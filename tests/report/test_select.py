"""Choosing rows, columns and epochs: every operator at its boundary, values worked out by hand."""

import pytest

from report.rows import Row
from report.select import at_equal_epochs, choose_columns, parse_condition, select_rows
from utils import UserError


def make_row(name: str, history=(), minimized=(), **params) -> Row:
    best = {"epoch": 1, "loss": 0.5, "accuracy": params.pop("accuracy", 0.5)}
    history = list(history)
    return Row(name, params, best, {"accuracy": 0.9}, 1, history, "done", frozenset(minimized), num_epochs=len(history))


@pytest.mark.parametrize(
    ("operator", "selected"),
    [
        ("=", ["two"]),
        ("==", ["two"]),
        ("!=", ["one", "three", "text", "none"]),
        ("<", ["one"]),
        ("<=", ["one", "two"]),
        (">", ["three"]),
        (">=", ["two", "three"]),
    ],
)
def test_every_operator_at_its_boundary(operator, selected):
    values = {"one": 1.999, "two": 2, "three": 2.001, "text": "2x", "none": None}
    rows = [make_row(name, lr=value) for name, value in values.items()]
    assert [row.name for row in select_rows(rows, [f"lr {operator} 2"])] == selected


def test_all_conditions_must_hold():
    rows = [make_row(f"{a}{b}", a=a, b=b) for a in (1, 2) for b in (1, 2)]
    assert [row.name for row in select_rows(rows, ["a=1", "b>1"])] == ["12"]
    assert select_rows(rows, []) == rows
    assert select_rows([], ["nothing=1"]) == []


@pytest.mark.parametrize(
    ("value", "condition", "is_met"),
    [
        ("0.5", "ps=0.5", True),  # a text that reads like the number
        (0.5, "ps=0.50", True),
        (True, "ps=true", True),
        (True, "ps>0", False),  # a switch is not a number
        ([1, 2], "ps=[1, 2]", True),
        ([1, 2], "ps=[1, 3]", False),
        (None, "ps=null", True),
        ("a b", "ps = a b", True),
        ("a=b", "ps=a=b", True),
    ],
)
def test_what_a_value_equals(value, condition, is_met):
    assert bool(select_rows([make_row("a", ps=value)], [condition])) is is_met


def test_a_metric_means_its_validation_value_and_columns_can_be_asked_for():
    rows = [make_row("low", accuracy=0.4), make_row("high", accuracy=0.6)]
    for condition in ("accuracy>=0.6", "val_accuracy>0.5", "folder=high"):
        assert [row.name for row in select_rows(rows, [condition])] == ["high"]
    assert len(select_rows(rows, ["test_accuracy=0.9", "test_looks=1", "status=done"])) == 2


def test_malformed_conditions():
    for text, words in (("lr", "NAME=VALUE is expected"), ("lr<high", "'high' is not a number"), ("lr>true", "number")):
        with pytest.raises(UserError, match=words):
            parse_condition(text)
    with pytest.raises(UserError, match="there is no column 'lrr'; did you mean 'lr'"):
        select_rows([make_row("a", lr=1)], ["lrr=1"])
    condition = parse_condition("a <= 0.5")
    assert (condition.name, condition.operator, condition.value) == ("a", "<=", 0.5)


def test_columns_in_the_order_given():
    columns = ["folder", "lr", "val_accuracy", "accuracy_of_something"]
    assert choose_columns(columns, " accuracy, folder,accuracy ,") == ["val_accuracy", "folder"]
    with pytest.raises(UserError, match="names are expected"):
        choose_columns(columns, " , ")
    with pytest.raises(UserError, match="--columns: there is no column 'acuracy'"):
        choose_columns(columns, "acuracy")


# --- epochs ---------------------------------------------------------------------------------------------


def make_history(accuracies, seconds=2.0):
    return [
        {"epoch": epoch, "val_accuracy": value, "val_loss": 1 - (value or 0), "train_loss": 9.0, "seconds": seconds}
        for epoch, value in enumerate(accuracies, 1)
    ]


def test_runs_are_cut_to_the_shortest():
    long = make_row("long", make_history([0.1, 0.7, 0.6, 0.9]))
    short = make_row("short", make_history([0.2, 0.3, 0.25]))
    unstarted = make_row("unstarted")
    num_epochs, rows, problems = at_equal_epochs([long, short, unstarted])
    assert (num_epochs, problems) == (3, {})
    assert [row.name for row in rows] == ["long", "short"]
    assert rows[0].best == {"epoch": 2, "accuracy": 0.7, "loss": pytest.approx(0.3)}
    assert rows[0].last == {"epoch": 3, "accuracy": 0.6, "loss": pytest.approx(0.4)}
    assert (rows[0].num_epochs, rows[0].seconds, rows[0].test) == (3, 6.0, {})
    assert rows[1].best["epoch"] == 2


def test_ties_keep_the_earlier_epoch_and_nothing_recorded_means_the_last():
    tied = make_row("tied", make_history([0.5, 0.5]))
    undefined = make_row("undefined", make_history([None, None]))
    _, rows, _ = at_equal_epochs([tied, undefined])
    assert [row.best["epoch"] for row in rows] == [1, 2]


def test_a_minimized_metric_takes_its_lowest_epoch():
    row = make_row("a", make_history([0.5, 0.2, 0.3]), minimized=["accuracy"])
    assert at_equal_epochs([row])[1][0].best["epoch"] == 2


def test_a_history_of_another_shape_is_named():
    odd = make_row("odd", [{"epoch": 1, "val_loss": 1.0}])
    wrong = make_row("wrong", [{"epoch": 1, "val_accuracy": "high", "val_loss": 1.0}])
    num_epochs, rows, problems = at_equal_epochs([odd, wrong])
    assert (num_epochs, rows) == (1, [])
    assert problems["odd"].startswith("malformed: KeyError in its history")
    assert problems["wrong"].startswith("malformed: ")
    assert at_equal_epochs([]) == (0, [], {})
