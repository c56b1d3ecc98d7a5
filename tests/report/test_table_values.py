"""Tables and verdicts against values worked out by hand: columns, order, cells, groups, sentences."""

import re

import pytest

from report.formats import format_cell, list_problems, replace_surrogates, to_csv, to_markdown
from report.rows import Row
from report.settings import differing_keys, format_value, group_replicates, label_run
from report.statistics import Verdict
from report.summary import (
    MAX_PARAMETERS,
    Summary,
    format_p,
    format_summary,
    join_names,
    judged_metric,
    readable_columns,
    summarise,
    summary_object,
    verdict_sentence,
)
from report.tables import (
    Table,
    is_lower_better,
    make_group_lines,
    make_lines,
    make_table,
    mean_of,
    metric_names,
    most_common_metric,
    name_group,
    sort_column,
)
from utils import UserError


def make_row(name: str, accuracy: float | None, loss: float | None = 0.5, **more) -> Row:
    fields = {"test": {}, "num_looks": 0, "history": [], "status": "done", "minimized": frozenset()}
    fields |= {"best": {"epoch": 3, "loss": loss, "accuracy": accuracy}, "last": {"accuracy": accuracy}}
    own = {key: more.pop(key) for key in list(more) if key in Row.__dataclass_fields__}
    return Row(name=name, params=more, **(fields | own))


def folders(table: Table) -> list[object]:
    return [line["folder"] for line in table.lines]


# --- columns and cells ----------------------------------------------------------------------------------


def test_every_cell_of_a_line():
    rows = [
        make_row("a", 0.9, 0.1, ps=0.5, seconds=1.26, num_epochs=4, num_parameters=10),
        make_row("b", 0.8, 0.2, ps=0.25, seconds=2.0, num_epochs=5, test={"accuracy": 0.7, "loss": 0.6}, num_looks=2),
    ]
    first, second = make_lines(rows, ["ps"])
    assert first == {
        "folder": "a",
        "ps": 0.5,
        "best_epoch": 3,
        "epochs": 4,
        "val_loss": 0.1,
        "val_accuracy": 0.9,
        "last_accuracy": 0.9,
        "test_accuracy": None,
        "test_looks": 0,
        "num_parameters": 10,
        "seconds": 1.3,
        "status": "done",
    }
    assert list(second) == list(first)
    assert second["test_accuracy"] == 0.7
    assert second["test_looks"] == 2
    assert second["num_parameters"] is None


def test_columns_that_nobody_needs_are_left_out():
    columns = make_table([make_row("a", 0.9), make_row("b", 0.8)]).columns
    assert columns == [
        "folder",
        "best_epoch",
        "epochs",
        "val_loss",
        "val_accuracy",
        "last_accuracy",
        "seconds",
        "status",
    ]
    assert make_table([]) == Table([], [])


def test_the_most_common_metric_and_ties():
    def wants(*names):
        return [make_row(f"r{i}", 0.5, best_metric=name) for i, name in enumerate(names)]

    assert most_common_metric(wants("f1", "auc", "auc")) == "auc"
    assert most_common_metric(wants("f1", "auc")) == "f1"
    assert most_common_metric(wants("metrics.py:ece")) == "ece"
    assert most_common_metric([]) == "accuracy"
    assert most_common_metric([make_row("a", 0.5)]) == "accuracy"


def test_loss_comes_first_and_epoch_is_no_metric():
    assert metric_names([{"epoch": 1, "f1": 0.5}, {"loss": 1.0, "auc": 0.5}]) == ["loss", "f1", "auc"]


# --- order ----------------------------------------------------------------------------------------------


def test_higher_accuracy_first_missing_last_ties_by_name():
    rows = [make_row("run_10", 0.5), make_row("run_2", 0.5), make_row("none", None), make_row("best", 0.6)]
    assert folders(make_table(rows)) == ["best", "run_2", "run_10", "none"]


def test_lower_loss_first_missing_last():
    rows = [make_row("high", 0.5, 0.9), make_row("none", 0.5, None), make_row("low", 0.5, 0.1)]
    assert folders(make_table(rows, "loss")) == ["low", "high", "none"]


def test_a_metric_of_the_folder_may_be_minimized():
    rows = [
        make_row(name, 0.5, best={"ece": value}, best_metric="ece", minimized=frozenset({"ece"}))
        for name, value in (("bad", 0.3), ("good", 0.1))
    ]
    assert folders(make_table(rows)) == ["good", "bad"]
    assert is_lower_better(rows, "ece")
    assert is_lower_better(rows, "loss")
    assert not is_lower_better(rows, "accuracy")


def test_parameters_are_sorted_upward_numbers_before_text_before_nothing():
    values = {"text": "b", "ten": 10, "none": None, "two": 2.5, "other": "a10", "another": "a9"}
    rows = [make_row(name, 0.5, ps=value) for name, value in values.items()]
    assert folders(make_table(rows, "ps")) == ["two", "ten", "another", "other", "text", "none"]


@pytest.mark.parametrize("column", ["test_accuracy", "last_accuracy"])
def test_other_splits_are_sorted_best_first(column):
    split = column.split("_")[0]
    rows = [make_row(name, 0.5, **{split: {"accuracy": value}}) for name, value in (("a", 0.1), ("b", 0.3), ("c", 0.2))]
    assert folders(make_table(rows, column)) == ["b", "c", "a"]


def test_looks_are_a_count_and_not_a_metric():
    rows = [make_row(name, 0.5, test={"accuracy": 0.5}, num_looks=num) for name, num in (("a", 3), ("b", 1))]
    assert folders(make_table(rows, "test_looks")) == ["b", "a"]


def test_the_default_order_is_by_folder_where_nobody_has_the_metric():
    rows = [make_row("b", 0.5, best={"loss": 0.1}), make_row("a", 0.5, best={"loss": 0.2})]
    assert sort_column(make_table(rows).columns, rows, None) == "folder"
    assert folders(make_table(rows)) == ["a", "b"]
    with pytest.raises(UserError, match="--sort: there is no column 'los'.*loss"):
        make_table(rows, "los")


# --- groups ---------------------------------------------------------------------------------------------


def test_every_cell_of_a_group():
    group = [
        make_row(
            "lr_1__seed_0", 0.8, 0.4, seed=0, lr=1, seconds=2.0, num_epochs=4, test={"accuracy": 0.7}, num_looks=1
        ),
        make_row("lr_1__seed_1", 0.6, 0.2, seed=1, lr=1, seconds=4.0, num_epochs=5, num_looks=2, num_parameters=7),
        make_row("lr_1__seed_2", None, 0.9, seed=2, lr=1, status="failed", num_epochs=1),
    ]
    (line,) = make_group_lines([group], [group[:2]], "accuracy", ["lr"])
    half_width = line.pop("interval")
    assert half_width == pytest.approx(12.706204736 * 0.1414213562 / 2**0.5)  # t(0.975, 1) s / sqrt(2)
    assert line == {
        "folder": "lr_1…",
        "lr": 1,
        "n": 2,
        "val_accuracy": pytest.approx(0.7),
        "p": None,
        "last_accuracy": pytest.approx(0.7),
        "val_loss": pytest.approx(0.3),
        "test_accuracy": 0.7,
        "test_looks": 3,
        "epochs": 4.5,
        "num_parameters": None,
        "seconds": 3.0,
        "status": "2 of 3 done",
    }


def test_a_group_without_any_value():
    (line,) = make_group_lines([[make_row("a", None)]], [[]], "accuracy", [])
    assert (line["n"], line["val_accuracy"], line["interval"], line["seconds"]) == (0, None, None, None)
    assert line["status"] == "0 of 1 done"
    assert mean_of([None, 1.0, 2.0]) == 1.5
    assert mean_of([None]) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["lr_0.1__seed_0", "lr_0.1__seed_1"], "lr_0.1…"),
        (["lr_0.1__seed_10", "lr_0.1__seed_11"], "lr_0.1__seed_1…"),
        (["a__fold_1", "a__fold_2"], "a…"),
        (["a/1", "a/2"], "a…"),
        (["x", "y"], "x and 1 more"),
        (["only"], "only"),
    ],
)
def test_the_name_of_a_group(names, expected):
    assert name_group([make_row(name, 0.5) for name in names]) == expected


def test_seeds_and_folds_make_a_group_and_other_keys_do_not():
    rows = [
        make_row(f"{lr}{seed}{fold}", 0.5, lr=lr, seed=seed, fold=fold)
        for lr in (1, 2)
        for seed in (0, 1)
        for fold in (1, 2)
    ]
    assert differing_keys(rows) == ["lr", "seed", "fold"]
    groups = group_replicates(rows)
    assert [[row.name for row in group] for group in groups] == [
        ["101", "102", "111", "112"],
        ["201", "202", "211", "212"],
    ]
    assert group_replicates(rows, ["seed"]) == [rows]


def test_a_parameter_that_one_row_lacks_differs():
    rows = [make_row("a", 0.5, one=1, two=2), make_row("b", 0.5, one=1)]
    assert differing_keys(rows) == ["two"]
    assert differing_keys(rows[:1]) == []
    assert differing_keys([]) == []


def test_a_label_is_the_folder_when_it_gets_long():
    assert label_run(make_row("a", 0.5, x=0.1, y=None), ["x", "y"]) == "x 0.1, y none"
    assert label_run(make_row("a", 0.5), []) == "a"
    for length, expected in ((88, "x " + "v" * 88), (89, "a")):  # 90 characters in all
        assert label_run(make_row("a", 0.5, x="v" * length), ["x"]) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.1, "0.1"), (1e-5, "1e-05"), (3, "3"), ("a b", "a b"), (None, ""), (True, "true"), ([1, "ä"], '[1, "ä"]')],
)
def test_a_value_as_people_write_it(value, expected):
    assert format_value(value) == expected


# --- text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("val_accuracy", 0.98765, "0.9877"),
        ("last_loss", 2.0, "2.0000"),
        ("test_looks", 2, "2"),
        ("interval", 0.00126, "± 0.0013"),
        ("p", 0.04567, "0.046"),
        ("seconds", 12.34, "12.3"),
        ("epochs", 4.5, "4.5"),
        ("epochs", 4.0, "4"),
        ("learning_rate", 0.00123456789, "0.00123457"),
        ("num_parameters", 1234567, "1,234,567"),
        ("status", "", ""),
        ("ps", None, ""),
        ("ps", "x" * 61, "x" * 39 + "…" + "x" * 20),
        ("ps", "x" * 60, "x" * 60),
        ("folder", "x" * 100, "x" * 100),
    ],
)
def test_a_cell_as_people_read_it(column, value, expected):
    assert format_cell(column, value) == expected


def test_csv_has_every_digit_and_no_time():
    line = {"folder": 'a,"b"', "ps": None, "x": [1, 2], "val_accuracy": 0.1 + 0.2, "seconds": 3.0, "status": "done"}
    assert to_csv(Table(list(line), [line])) == (
        'folder,ps,x,val_accuracy,status\n"a,""b""",,"[1, 2]",0.30000000000000004,done\n'
    )


def test_markdown_aligns_numbers_to_the_right_and_text_to_the_left():
    lines = [{"folder": "a", "number": 0.5, "letters": "y"}, {"folder": "b", "number": None, "letters": 1}]
    header, _, first, _ = to_markdown(Table(["folder", "number", "letters"], lines)).splitlines()
    assert header.split() == ["|", "folder", "|", "number", "|", "letters", "|"]
    _, folder, number, letters, _ = first.split("|")
    assert folder == " a        "
    assert number == "      0.5 "
    assert letters == " y         "
    assert to_markdown(Table(["folder"], [])).splitlines()[0] == "| folder   |"


def test_half_characters_are_escaped():
    assert replace_surrogates("a\udcffé") == "a\\udcffé"


def test_problems_are_counted_by_kind_the_most_frequent_first():
    problems = {
        "a": "not trained yet",
        "b": "failed at epoch 1, step 2: x",
        "c": "not trained yet",
        "d": "malformed: y",
    }
    assert list_problems(problems).splitlines() == [
        "Not done: 2 created, 1 failed, 1 malformed",
        "",
        "- `a`: not trained yet",
        "- `b`: failed at epoch 1, step 2: x",
        "- `c`: not trained yet",
        "- `d`: malformed: y",
    ]
    assert list_problems({}) == ""


def test_parameters_beyond_the_limit_are_those_with_the_fewest_values():
    def columns_of(num):
        params = [f"p{i}" for i in range(num)]
        lines = [{name: place if name != "p3" else 0 for name in params} for place in range(2)]
        return readable_columns(Table(["folder", *params, "best_epoch", "status"], lines))

    assert len(columns_of(MAX_PARAMETERS)) == MAX_PARAMETERS + 3
    assert columns_of(MAX_PARAMETERS + 1) == [
        "folder",
        *(f"p{i}" for i in range(MAX_PARAMETERS + 1) if i != 3),
        "best_epoch",
        "status",
    ]


def test_lines_beyond_the_limit_are_counted():
    summary = summarise([make_row(f"run_{i}", 0.5 + i / 10, lr=i) for i in range(3)], {})
    assert "... 2 more lines: see --top, --columns, or results.csv" in format_summary(summary, top=1)
    assert "more lines" not in format_summary(summary, top=3)
    assert "more lines" not in format_summary(summary, top=0)
    assert [line["folder"] for line in summary_object(summary, 1)["rows"]] == ["run_2"]
    assert len(summary_object(summary)["rows"]) == 3
    assert "groups" not in summary_object(summary)


# --- the verdict in words -------------------------------------------------------------------------------


def two_settings(first, second, **more):
    rows = []
    for lr, values in ((1, first), (2, second)):
        rows += [make_row(f"lr_{lr}__seed_{i}", value, lr=lr, seed=i, **more) for i, value in enumerate(values)]
    return rows


def test_a_winner_in_words():
    summary = summarise(two_settings([0.9, 0.91, 0.92], [0.5, 0.51, 0.52]), {})
    # mean 0.91, s 0.01, t(0.975, 2) = 4.30265: 4.30265 * 0.01 / sqrt(3)
    assert summary.verdict.startswith(
        "Best: lr 1, mean accuracy 0.9100 ± 0.0248, n = 3; better than every other at the 5%"
    )
    assert [line["lr"] for line in summary.groups.lines] == [1, 2]
    assert summary.groups.lines[0]["p"] is None
    assert 0 < summary.groups.lines[1]["p"] < 1e-4


def test_lower_is_better_for_a_loss_in_words():
    rows = [
        make_row(f"lr_{lr}__seed_{seed}", 0.5, lr / 10 + seed / 100, lr=lr, seed=seed)
        for lr in (1, 5)
        for seed in (0, 1, 2)
    ]
    assert summarise(rows, {}, "loss").verdict.startswith("Best: lr 1, mean loss 0.1100 ± 0.0248, n = 3; better than")


def test_one_run_each_is_no_claim():
    summary = summarise([make_row("a", 0.9, lr=1), make_row("b", 0.8, lr=2)], {})
    assert summary.verdict == "Best: lr 1, accuracy 0.9000; one run each, so no claim."
    assert summary.groups == Table()
    # Equal results have no best; a parameter that is null is called none.
    equal = [make_row(name, 0.9, lr=lr) for name, lr in (("a", None), ("b", 2), ("c", 3), ("d", 4))]
    assert summarise(equal, {}).verdict == "No best: the accuracy of all 4 is 0.9000; one run each, so no claim."
    two = [*equal[:2], make_row("c", 0.8, lr=3)]
    assert summarise(two, {}).verdict == (
        "Best: lr none, accuracy 0.9000; equal to it: lr 2; one run each, so no claim."
    )
    assert summarise([make_row("a", 0.9)], {}).verdict == ""


def test_a_duplicate_counts_once_and_the_later_name_is_kept():
    rows = [*two_settings([0.9, 0.91], [0.5, 0.51]), make_row("zz", 0.7, lr=1, seed=0)]
    line = summarise(rows, {}).groups.lines[0]
    assert line["n"] == 2
    assert line["val_accuracy"] == pytest.approx((0.7 + 0.91) / 2)


def test_unfinished_runs_count_only_when_asked_for():
    rows = two_settings([0.9, 0.91], [0.5, 0.51])
    rows.append(make_row("lr_1__seed_2", 0.1, lr=1, seed=2, status="pruned"))
    assert summarise(rows, {}).groups.lines[0]["n"] == 2
    assert {line["lr"]: line["n"] for line in summarise(rows, {}, include_unfinished=True).groups.lines} == {1: 3, 2: 2}


def test_folds_are_always_paired_and_seeds_only_with_shared_noise():
    values = [0.5, 0.7, 0.6], [0.62, 0.55, 0.71]
    assert "unpaired" in summarise(two_settings(*values), {}).verdict
    folds = [
        make_row(f"{lr}{fold}", value, lr=lr, fold=[fold, 3])
        for lr, group in zip((1, 2), values, strict=True)
        for fold, value in enumerate(group, 1)
    ]
    assert "paired by seed or fold" in summarise(folds, {}).verdict


def test_the_metric_that_is_judged():
    rows = [make_row("a", 0.9, lr=1), make_row("b", 0.8, lr=2)]
    columns = make_table(rows).columns
    assert judged_metric(rows, columns, None) == "accuracy"
    assert judged_metric(rows, columns, "loss") == "loss"
    assert judged_metric(rows, columns, "epochs") == "accuracy"
    bare = [make_row("a", 0.9, best={}), make_row("b", 0.9, best={})]
    assert judged_metric(bare, make_table(bare).columns, None) is None


def test_every_sentence():
    values = [{"0": 0.9, "1": 0.8}, {"0": 0.5}]
    alone = Verdict(0, False, None, [None, None], unjudged=[1])
    expected = "No winner. Best: a, mean accuracy 0.8500 ± 0.6353, n = 2; the others have one run each, so no claim."
    assert verdict_sentence(alone, ["a", "b"], values, "accuracy") == f"{expected} Not judged, one run each: b."
    single = Verdict(1, False, None, [None, None])
    values = [{"0": 0.3, "1": 0.4}, {"0": 0.5}]
    assert verdict_sentence(single, ["a", "b"], values, "accuracy") == (
        "No winner. Best: b, accuracy 0.5000; one run, so no claim."
    )
    values = [{"0": 0.9, "1": 0.8}] * 2
    noise = Verdict(0, False, 0.3, [None, 0.3], contenders=[1], is_paired=True)
    assert verdict_sentence(noise, ["a", "b"], values, "accuracy") == (
        "No winner: within noise (p = 0.3, paired by seed or fold). "
        "Best mean: a, mean accuracy 0.8500 ± 0.6353, n = 2. Could equally be best: b."
    )
    won = Verdict(0, True, 0.00004, [None, 0.00004])
    assert verdict_sentence(won, ["a", "b"], values, "accuracy") == (
        "Best: a, mean accuracy 0.8500 ± 0.6353, n = 2; "
        "better than every other at the 5% level (p = 1e-04 or less, unpaired)."
    )


def test_small_p_and_many_names():
    assert [format_p(p) for p in (0.5, 0.0123, 1e-4, 0.99e-4)] == ["0.5", "0.012", "0.0001", "1e-04 or less"]
    assert join_names(["a", "b", "c"]) == "a; b; c"
    assert join_names(["a", "b", "c", "d", "e"]) == "a; b; c; and 2 more"
    assert join_names([]) == ""


def test_the_verdict_is_written_once_below_the_settings_or_else_below_the_runs():
    runs, groups = Table(["folder", "best_epoch"], [{"folder": "run"}]), Table(["folder", "n"], [{"folder": "setting"}])
    both = format_summary(Summary(runs, {}, groups, verdict="Best: it.", remark="At equal epochs."))
    alone = format_summary(Summary(runs, {}, verdict="Best: it.", remark="At equal epochs."))
    words = ["setting", "Best: it.", "Each run:", "run", "At equal epochs."]
    assert [part for part in re.split(r"\n+|[| ]*\|[| ]*", both) if part in words] == words
    words = ["run", "Best: it.", "At equal epochs."]
    assert [part for part in re.split(r"\n+|[| ]*\|[| ]*", alone) if part in words] == words
