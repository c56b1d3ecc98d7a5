"""report.html of one experiment: static, from disk, without a network. Of several: report/html/runs_page.py."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import params as params_module
from folder.history import training_column, validation_column
from folder.manifest import SEAL_KEYS
from include import (
    BATCH_PNG,
    CODE,
    DIFF_PATCH,
    EVALUATION,
    HISTORY_CSV,
    HISTORY_JSON,
    LR_FIND_PNG,
    META,
    METRICS_BEST,
    METRICS_LAST,
    METRICS_TEST,
    PARAMS,
    REQUIREMENTS,
    RESOLVED,
    STATUS,
    TEST_LOOKS,
    TRAIN_HISTORY_PNG,
    TRAIN_LOG,
)
from report.figures import history_metrics, rate_series, series, shorten
from report.html.document import (
    HERE,
    REPORT,
    PageTable,
    find_report_above,
    link_above,
    link_pictures,
    link_to,
    provide_plotly,
    state_from_remark,
    write_document,
)
from report.json_files import History, JsonObject, count_looks, read_object
from report.rows import flatten, metric_name, read_checked_history, read_rows, total_seconds
from report.settings import format_value
from utils import UserError, command

UNREADABLE = (UserError, OSError, ValueError, KeyError, TypeError, AttributeError)
LOG_LINES, LOG_BYTES, LINE_LENGTH = 60, 65_536, 400
PICTURES = (BATCH_PNG, TRAIN_HISTORY_PNG, LR_FIND_PNG)
EVALUATION_PICTURES = ("confusion_matrix.png", "top_losses.png")
EVALUATION_TABLES = (f"{EVALUATION}/per_class.csv", f"{EVALUATION}/predictions.csv")
FILES = (PARAMS, HISTORY_CSV, TRAIN_LOG, *EVALUATION_TABLES, RESOLVED, META, REQUIREMENTS, DIFF_PATCH, CODE)
SOURCES = tuple(path for kind in ("py", "j2", "js", "css") for path in HERE.glob(f"*.{kind}"))

NOT_SHOWN = {"pinned", "hyper_search", "search", *SEAL_KEYS}  # no parameters of one run

Panels: TypeAlias = dict[str, dict[str, list[float]]]  # panel -> curve -> one value per epoch
T = TypeVar("T")


def write_experiment_pages(folders: Sequence[Path]) -> list[Path]:
    """Write the page of each experiment that was trained and whose page is out of date -> the pages written.

    A published experiment keeps the page that it came with.
    """
    written = []
    for folder in folders:
        with contextlib.suppress(PermissionError):  # another user's folder
            if (folder / RESOLVED).exists() and not is_up_to_date(folder) and not is_published(folder):
                written.append(write_experiment_page(folder))
    return written


def is_published(folder: Path) -> bool:
    """True for a folder with a page whose records name no place, like experiments/example."""
    try:
        meta = read_object(str(folder / META)) or {}
    except UNREADABLE:
        return False
    return "path" in meta and meta["path"] is None and (folder / REPORT).exists()


def is_up_to_date(folder: Path) -> bool:
    """True if the page is newer than what it shows and the code that writes it, and links to the right page above."""
    evaluated = [f"{EVALUATION}/{name}" for name in EVALUATION_PICTURES]
    shown = [STATUS, HISTORY_JSON, METRICS_TEST, TEST_LOOKS, *PICTURES, *evaluated]
    sources = [*(folder / name for name in shown), *SOURCES]
    up = link_above(folder)
    page = folder / REPORT
    try:
        head = page.read_bytes()[:1000].decode("utf-8", "replace")
        written = page.stat().st_mtime_ns
        is_linked = f'rel="up" href="{up.href}"' in head if up else 'rel="up"' not in head
        return is_linked and all(source.stat().st_mtime_ns < written for source in sources if source.exists())
    except OSError:
        return False


def write_experiment_page(folder: Path) -> Path:
    """Write the report.html of a trained experiment -> its path. Damaged files are named on the page and left out."""
    path = Path(os.path.abspath(folder))
    problems: list[str] = []

    def read(reader: Callable[[str], T], name: str, default: T) -> T:
        try:
            return reader(str(path / name)) if (path / name).exists() else default
        except UNREADABLE as error:
            problems.append(str(error))
            return default

    # What the folder says.
    resolved, meta, best, last, test = (
        read(read_object, name, None) or {} for name in (RESOLVED, META, METRICS_BEST, METRICS_LAST, METRICS_TEST)
    )
    history = read(read_checked_history, HISTORY_JSON, [])
    rows, unfinished = read_rows([path])
    remark = unfinished.get(str(path), "")

    # What the page shows of it.
    metric = metric_name(resolved)
    metric_lines = {"validation, best weights": best, "validation, last weights": last, "test, best weights": test}
    panels = collect_panels(history, metric)
    parameters, changed = list_parameters(resolved)
    evaluated = [place / name for place in sorted(path.glob(f"{EVALUATION}*/")) for name in EVALUATION_PICTURES]
    values: dict[str, object] = {
        "state": rows[0].status if rows else state_from_remark(remark),
        "remark": shorten(remark, 400) if remark else "",
        "problems": problems,
        "metrics": tabulate_metrics(metric_lines, metric),
        "num_looks": count_looks(str(path / TEST_LOOKS)),
        "facts": list_facts(resolved, meta, history),
        "panels": list(panels),
        "parameters": parameters,
        "changed_parameters": changed,
        "pictures": link_pictures([*(path / name for name in PICTURES), *evaluated], path),
        "log": read_log_end(path / TRAIN_LOG),
        "files": [link_to(path / name, path, name) for name in FILES if (path / name).exists()],
    }
    data = {"series": panels, "epochs": series(history, "epoch"), "best_epoch": best.get("epoch")}
    scripts = find_report_above(path) or path
    provide_plotly(scripts)
    write_document(path, "experiment.html.j2", values, data, scripts)
    return folder / REPORT


# --- what it shows --------------------------------------------------------------------------------------


def collect_panels(history: History, metric: str) -> Panels:
    """The curves: loss, the metrics, the learning rate of each layer group. Curves without any value are left out."""
    panels: Panels = {}
    for name in history_metrics(history, [metric]):
        training, validation = training_column(name), validation_column(name)
        panels[name] = {"training": series(history, training), "validation": series(history, validation)}
    groups = rate_series(history)
    labels = ["learning rate"] if len(groups) == 1 else [f"layer group {n + 1}" for n in range(len(groups))]
    panels["learning_rate"] = dict(zip(labels, groups, strict=True))
    with_values = {
        panel: {label: curve for label, curve in curves.items() if any(map(math.isfinite, curve))}
        for panel, curves in panels.items()
    }
    return {panel: curves for panel, curves in with_values.items() if curves}


def tabulate_metrics(tables: Mapping[str, JsonObject], metric: str) -> PageTable | None:
    """A line for each of `tables` that has values: epoch, `metric`, loss, then the other metrics."""
    tables = {title: values for title, values in tables.items() if values}
    if not tables:
        return None
    names = list(dict.fromkeys(name for values in tables.values() for name in values))
    names.sort(key=lambda name: (name != "epoch", name != metric, name != "loss"))
    lines = [[title, *(format_metric(values.get(name), name) for name in names)] for title, values in tables.items()]
    return PageTable(["", *names], lines, frozenset(range(1, len(names) + 1)))


def format_metric(value: object, name: str) -> str:
    """A metric with four decimals; an epoch as it is; "" for null."""
    return f"{value:.4f}" if isinstance(value, float) and name != "epoch" else format_value(value)


def list_facts(resolved: JsonObject, meta: JsonObject, history: History) -> dict[str, object]:
    """Where the run comes from; what is not known is left out."""
    pinned = resolved.get("pinned") or {}
    git = meta.get("git") or {}
    versions = meta.get("versions") or {}
    num_sessions = len(meta.get("sessions") or [])
    commit = f"{str(git.get('commit', ''))[:12]} {git.get('branch', '')}" if git else ""
    size = meta.get("num_parameters")
    facts = {
        "epochs": f"{len(history)}, {total_seconds(history):.1f} s" if history else "",
        "data": meta.get("data_dir"),
        "classes": len(pinned.get("classes") or []),
        "weights": f"{size:,}" if isinstance(size, int) else "",
        "command": command(*(meta.get("command") or [])),
        "started": " on ".join(str(meta[key]) for key in ("start", "host") if meta.get(key)),
        "sessions": num_sessions if num_sessions > 1 else "",
        "git": f"{commit}, with uncommitted changes" if git.get("dirty") else commit,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return {name: value for name, value in facts.items() if value}


def list_parameters(resolved: JsonObject) -> tuple[PageTable | None, PageTable]:
    """(all parameters beside their defaults, None without any; those that differ from their default)"""
    ran = flatten({key: value for key, value in resolved.items() if key not in NOT_SHOWN})
    defaults = flatten(params_module.DEFAULTS.resolved())
    lines = [
        [key, format_value(value) or "null", format_value(defaults.get(key)) or "null"] for key, value in ran.items()
    ]
    header = ["parameter", "value", "default"]
    changed = PageTable(header, [line for line in lines if line[1] != line[2]])
    return PageTable(header, lines) if lines else None, changed


def read_log_end(path: Path) -> str:
    """The last lines of the log, "" without one."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    except OSError:
        return ""
    return "\n".join(line if len(line) <= LINE_LENGTH else line[:LINE_LENGTH] + "…" for line in lines)
