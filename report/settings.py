"""Settings: runs whose parameters differ in seed or fold alone. Which parameters differ, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Sequence

from report.rows import Row

REPLICATE_KEYS = ("seed", "fold")  # runs that differ in these alone measure the same thing


def differing_keys(rows: Sequence[Row]) -> list[str]:
    """The parameters that are not the same in all rows."""
    if not rows:
        return []
    if len({tuple(row.params) for row in rows}) == 1:  # the same names in the same order: compare column by column
        columns = zip(*(row.params.values() for row in rows), strict=True)
        return [key for key, column in zip(rows[0].params, columns, strict=True) if column.count(column[0]) < len(rows)]
    keys = dict.fromkeys(key for row in rows for key in row.params)
    first = rows[0].params
    return [key for key in keys if any(row.params.get(key) != first.get(key) for row in rows)]


def setting_keys(keys: Sequence[str]) -> list[str]:
    """`keys` without seed and fold."""
    return [key for key in keys if key not in REPLICATE_KEYS]


def group_replicates(rows: Sequence[Row], keys: Sequence[str] | None = None) -> list[list[Row]]:
    """Rows grouped by setting, in the order of the first row of each.

    keys: differing_keys(rows), where they are known already.
    """
    keys = setting_keys(differing_keys(rows) if keys is None else keys)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row.params.get(key) for key in keys]), []).append(row)
    return list(groups.values())


def label_run(row: Row, keys: Sequence[str]) -> str:
    """The parameters `keys` of a run in words; its folder's name when they are too long, or when there are none."""
    text = ", ".join(f"{key} {format_value(row.params.get(key))}" for key in keys)
    return text if text and len(text) <= 90 else row.name


def format_value(value: object) -> str:
    """A parameter as readable text; "" for null."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)
