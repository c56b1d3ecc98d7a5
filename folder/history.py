"""The rows of a history: one per epoch, the best row, the rows as CSV, and the meaning of metric names.

A metric has one short name everywhere: "file.py:Name" is called Name (`utils.reference_name`). A column holds the
value of a metric on one split: val_accuracy. A bare metric name means its value on the validation split.
Pure functions: nothing here reads or writes a file.
"""

import csv
import io
from collections.abc import Collection, Sequence
from typing import Any

from utils import reference_name

HISTORY_SPLITS = ("train", "val")  # of the columns of a history
TABLE_SPLITS = ("val", "last", "test")  # of the columns of a table: the best weights, the last weights, the test split
TEST_LOOKS = "test_looks"  # the number of looks at the test split: a column of tables that belongs to no metric


# --- names ------------------------------------------------------------------------------------------


def join_column(split: str, metric: str) -> str:
    """The column of a metric on a split: ("val", "accuracy") -> "val_accuracy"."""
    return f"{split}_{metric}"


def validation_column(metric: str) -> str:
    return join_column("val", metric)


def training_column(metric: str) -> str:
    return join_column("train", metric)


def split_column(column: str) -> tuple[str, str]:
    """("val", "accuracy") of "val_accuracy"; ("", column) where the column belongs to no metric."""
    split, _, metric = column.partition("_")
    is_metric = metric and split in {*HISTORY_SPLITS, *TABLE_SPLITS} and column != TEST_LOOKS
    return (split, metric) if is_metric else ("", column)


def monitored_column(name: str) -> str:
    """The history column that a name in params.json means: val_f1 for f1, val_f1 and file.py:f1."""
    short = reference_name(name)
    return short if split_column(short)[0] in HISTORY_SPLITS else validation_column(short)


# --- direction --------------------------------------------------------------------------------------


def recorded_minimized(meta: dict[str, Any]) -> frozenset[str]:
    """The metrics for which lower is better, from record/meta.json."""
    return frozenset(meta.get("minimize") or [])


def is_minimized(metric: str, minimized: Collection[str]) -> bool:
    """True where lower is better: always for the loss, for other metrics when `minimized` contains them."""
    return metric == "loss" or metric in minimized


# --- rows -------------------------------------------------------------------------------------------


def best_row(history: Sequence[dict[str, Any]], metric: str, minimized: Collection[str]) -> dict[str, Any] | None:
    """The row with the best validation `metric`; ties keep the earlier epoch. `minimized`: see is_minimized."""
    column = validation_column(metric)
    sign = 1 if is_minimized(metric, minimized) else -1
    rows = [row for row in history if row[column] is not None]
    return min(rows, key=lambda row: sign * row[column], default=None)


def validation_values(row: dict[str, Any]) -> dict[str, Any]:
    """Metric -> its value on the validation split, of a history row."""
    named = ((split_column(column), value) for column, value in row.items())
    return {metric: value for (split, metric), value in named if split == "val"}


def flat_metrics(row: dict[str, Any]) -> dict[str, Any]:
    """{"epoch", "loss", every validation metric} of a history row."""
    return {"epoch": row["epoch"], **validation_values(row)}


def history_csv(history: list[dict[str, Any]]) -> str:
    """The history as CSV, one row per epoch; a list of learning rates stays one JSON cell."""
    if not history:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[-1]), lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
