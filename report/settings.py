"""Settings: runs whose parameters differ in seed or fold alone. Which parameters differ, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Sequence

from folder.console import name_some
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


def describe_repeats(runs: Sequence[Row], name: str) -> list[str]:
    """What to know of a mean over `runs`, of the setting `name`: they may repeat a fold, or one run another."""
    # Runs of the same seed and fold.
    by_replicate: dict[str, list[Row]] = {}
    for row in runs:
        by_replicate.setdefault(json.dumps([row.params.get(key) for key in REPLICATE_KEYS]), []).append(row)
    notes = [
        f"{name}: {', '.join(row.name for row in same)} have the same seed and fold; the last one counts"
        for same in by_replicate.values()
        if len(same) > 1
    ]
    # Runs of the same fold, and folds of different numbers of parts.
    by_fold: dict[str, list[str]] = {}
    for *_, row in by_replicate.values():
        if fold := row.params.get("fold"):
            by_fold.setdefault(json.dumps(fold), []).append(row.name)
    repeated = [f"{fold}: {', '.join(names)}" for fold, names in by_fold.items() if len(names) > 1]
    if repeated and len(by_fold) > 1:
        num_runs = sum(map(len, by_fold.values()))
        notes.append(f"{name}: n = {num_runs} runs of {len(by_fold)} folds, of fold {'; of fold '.join(repeated)}")
    parts = sorted({json.loads(fold)[-1] for fold in by_fold})
    if len(parts) > 1:
        notes.append(f"{name}: folds of {' and of '.join(map(str, parts))} parts are averaged")
    return notes


def describe_validation(rows: Sequence[Row]) -> list[str]:
    """What to know of a comparison: runs on data of one name, and of one fold, may have validated on other images."""
    notes = []
    by_data: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row.validation:
            key = json.dumps([row.params.get("data"), row.params.get("fold")])
            by_data.setdefault(key, {}).setdefault(row.validation, []).append(row.name)
    for key, by_images in by_data.items():
        if len(by_images) > 1:
            data, _ = json.loads(key)
            parts = [name_some(names, 3) for names in by_images.values()]
            notes.append(f"{data}: not the same validation images, so not comparable: {' | '.join(parts)}")
    return notes


def label_run(row: Row, keys: Sequence[str]) -> str:
    """The parameters `keys` of a run in words; its folder's name when they are too long, or when there are none."""
    text = ", ".join(f"{key} {format_value(row.params.get(key)) or 'none'}" for key in keys)
    return text if text and len(text) <= 90 else row.name


def format_value(value: object) -> str:
    """A parameter as readable text; "" for null."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)
