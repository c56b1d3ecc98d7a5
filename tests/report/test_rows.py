"""What is read of a folder: limits of files, states, checks. Values by hand."""

import json
import os
import socket

import pytest
from runs import make_folder, make_run, write

from report.json_files import (
    MAX_BYTES,
    MAX_NUMBER,
    READ_SIZE,
    check_metrics,
    count_looks,
    read_bytes,
    read_history,
    read_object,
    read_rare_object,
)
from report.rows import current_state, flatten, metric_name, read_row, total_seconds, unfinished_remark
from utils import UserError


@pytest.mark.parametrize("size", [0, 1, READ_SIZE - 1, READ_SIZE, READ_SIZE + 1, 3 * READ_SIZE])
def test_a_file_is_read_whole_whatever_its_size(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    assert read_bytes(str(tmp_path / "a")) == data


def test_a_file_that_is_too_large_or_missing(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match="larger than 64 MiB"):
        read_bytes(str(tmp_path / "large"))
    assert read_bytes(str(tmp_path / "missing")) is None
    with pytest.raises(UserError, match="Is a directory"):
        read_bytes(str(tmp_path))


@pytest.mark.parametrize("text", ["null", "1", '"a"', "true"])
def test_json_of_another_kind_is_damage(tmp_path, text):
    path = str(tmp_path / "a.json")
    write(tmp_path / "a.json", text)
    with pytest.raises(UserError, match="an object is expected"):
        read_object(path)
    with pytest.raises(UserError, match="a list is expected"):
        read_history(path)


@pytest.mark.parametrize("text", ["{", "", '{"a": NaN}', '{"a": Infinity}', "[" * 100_000])
def test_what_is_not_json_is_one_line(tmp_path, text):
    write(tmp_path / "a.json", text)
    with pytest.raises(UserError, match="cannot be read as JSON") as caught:
        read_object(str(tmp_path / "a.json"))
    assert "\n" not in str(caught.value)


def test_missing_files_are_no_damage(tmp_path):
    path = str(tmp_path / "a.json")
    assert read_object(path) is None
    assert read_history(path) is None
    assert read_rare_object(path) == {}
    write(tmp_path / "a.json", {"a": 1})
    assert read_object(path) == read_rare_object(path) == {"a": 1}


@pytest.mark.parametrize("value", ["0.5", MAX_NUMBER, -MAX_NUMBER, float("nan"), float("inf"), [1]])
def test_what_is_no_finite_number_is_no_metric(value):
    with pytest.raises(UserError, match="here: every value must be a finite number or null"):
        check_metrics({"loss": 1.0, "accuracy": value}, "here")


def test_numbers_and_null_are_metrics():
    values = {"epoch": 3, "loss": 0.99 * MAX_NUMBER, "auc": None, "negative": -0.5}
    assert check_metrics(values, "here") == values


def test_looks_are_lines_that_are_not_blank(tmp_path):
    path = tmp_path / "looks"
    assert count_looks(str(path)) == 0
    path.write_text('{"n": 1}\n\n  \n{"n": 2}')
    assert count_looks(str(path)) == 2


def test_flat_names():
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": [1]}) == {"a.b.c": 1, "e": [1]}
    assert flatten({"b": 1}, "a.") == {"a.b": 1}


def test_the_name_of_the_metric():
    assert metric_name({}) == "accuracy"
    assert metric_name({"best_metric": "metrics.py:ece"}) == "ece"


def test_time_that_is_not_known_counts_nothing():
    assert total_seconds([{"seconds": 1.5}, {"seconds": None}, {}, {"seconds": 2}]) == 3.5


# --- states ---------------------------------------------------------------------------------------------

HERE = socket.gethostname()
DEAD = 2**22 + 1  # above the largest process id


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, "created"),
        ({"state": "done"}, "done"),
        ({"state": "running", "host": HERE, "pid": os.getpid()}, "running"),
        ({"state": "running", "host": HERE, "pid": DEAD}, "killed"),
        ({"state": "running", "host": "elsewhere", "pid": DEAD}, "running"),
        ({"state": "interrupted", "host": HERE, "pid": DEAD}, "interrupted"),
    ],
)
def test_the_state_of_a_folder(status, state):
    assert current_state(status) == state


@pytest.mark.parametrize("status", [{"state": 1}, {"state": "done", "epoch": 1.5}, {"state": "done", "step": "3"}])
def test_a_damaged_status(status):
    with pytest.raises(UserError, match="is damaged"):
        current_state(status)


@pytest.mark.parametrize(
    ("status", "remark"),
    [
        ({"state": "done"}, ""),
        ({}, "not trained yet"),
        ({"state": "running", "epoch": 1, "step": 2, "host": "x"}, "running at epoch 1, step 2"),
        ({"state": "running", "host": HERE, "pid": DEAD, "message": "m"}, "killed at epoch 0, step 0"),
        ({"state": "failed", "epoch": 1, "step": 2, "message": " a\n b "}, "failed at epoch 1, step 2: a b"),
        ({"state": "pruned", "epoch": 1, "step": 2}, "pruned at epoch 1, step 2"),
    ],
)
def test_why_a_folder_is_not_done(status, remark):
    assert unfinished_remark(status) == remark


# --- folders --------------------------------------------------------------------------------------------


def test_every_field_of_a_row(tmp_path):
    folder = make_folder(tmp_path / "a", 0.75, test=0.5, ps={"x": 1}, hyper_search={"ps": [1]})
    meta = {"data_dir": "/data/digits/", "minimize": ["ece"], "num_parameters": 12}
    write(folder / "record/meta.json", meta)
    row, remark = read_row(str(folder), "name")
    assert remark == ""
    assert row is not None
    assert row.name == "name"
    assert row.params == {"arch": "lenet", "learning_rate": 0.1, "best_metric": "accuracy", "ps.x": 1, "data": "digits"}
    assert row.best == {"epoch": 3, "loss": 0.25, "accuracy": 0.75}
    assert row.test == {"epoch": 3, "loss": 0.5, "accuracy": 0.5}
    assert (row.num_looks, row.num_epochs, row.seconds, row.num_parameters) == (2, 3, 4.5, 12)
    assert row.minimized == {"ece"}
    assert row.status == "done"
    assert len(row.history) == 3
    assert row.last == {"loss": row.history[2]["val_loss"], "accuracy": row.history[2]["val_accuracy"]}
    unread, _ = read_row(str(folder), "name", keep_history=False)
    assert unread is not None
    assert unread.history == []
    assert unread.num_epochs == 3


def test_the_last_weights_have_a_file_of_their_own(tmp_path):
    folder = make_run(tmp_path / "a", 0.75)
    write(folder / "metrics_val_last_weights.json", {"epoch": 5, "loss": 0.9, "accuracy": 0.1})
    row, _ = read_row(str(folder), "a")
    assert row is not None
    assert row.last["accuracy"] == 0.1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("record/resolved.json", {}, "no such file"),
        ("history.json", [{"seconds": 1e301, "epoch": 1}], "is damaged: train.py writes it again"),
        ("history.json", [{"seconds": 1}], "is damaged: train.py writes it again"),
        ("params.json", "{", "params.json"),
        ("params.json", "[]", "params.json"),
    ],
)
def test_damage_is_named(tmp_path, name, content, words):
    folder = make_run(tmp_path / "a", 0.75)
    write(folder / name, content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=words):
        read_row(str(folder), "a")


def test_comments_in_params_are_no_damage(tmp_path):
    folder = make_run(tmp_path / "a", 0.75)
    write(folder / "params.json", '{"ps": 0.5, // half\n}')
    assert read_row(str(folder), "a")[1] == ""


def test_folders_without_results(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "new/params.json", "{}")
    write(tmp_path / "odd/record/status.json", {"state": "done"})
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, words in (
        ("empty", "an empty folder"),
        ("link", "a link to .*, which is gone"),
        ("gone", "no such folder"),
    ):
        with pytest.raises(UserError, match=words):
            read_row(str(tmp_path / name), name)
    assert read_row(str(tmp_path / "new"), "new") == (None, "not trained yet")
    assert read_row(str(tmp_path / "odd"), "odd")[1].startswith("malformed: done, but there is no metrics_val_best")
