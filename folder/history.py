"""The rows of a history: one per epoch, the best of them, and what is written of them. Pure functions."""

import csv
import io
from collections.abc import Sequence
from typing import Any


def best_row(history: Sequence[dict[str, Any]], metric: str, minimize: bool) -> dict[str, Any] | None:
    """The row with the best validation `metric`; ties keep the earlier epoch."""
    sign = 1 if minimize else -1
    rows = [row for row in history if row[f"val_{metric}"] is not None]
    return min(rows, key=lambda row: sign * row[f"val_{metric}"], default=None)


def flat_metrics(row: dict[str, Any]) -> dict[str, Any]:
    """{"epoch", "loss", every validation metric} of a history row."""
    values = {key.removeprefix("val_"): value for key, value in row.items() if key.startswith("val_")}
    return {"epoch": row["epoch"], **values}


def history_csv(history: list[dict[str, Any]]) -> str:
    """The history as CSV, one row per epoch; a list of learning rates stays one JSON cell."""
    text = io.StringIO()
    if history:
        writer = csv.DictWriter(
            text, fieldnames=list(history[-1]), lineterminator="\n", restval="", extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(history)
    return text.getvalue()
