"""report.html of one experiment: static, from disk, without a network. Of several: report/html/runs_page.py."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import params as params_module
from folder.folder import Folder
from folder.history import training_column, validation_column
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
from report.figures import metric_names, series, shorten
from report.html.markup import (
    HERE,
    REPORT,
    badge,
    href,
    link,
    pictures,
    provide_plotly,
    report_above,
    table,
    text,
    write_document,
)
from report.html.runs_page import state_of
from report.rows import count_looks, flatten, read_rows, show
from utils import UserError, command, reference_name

UNREADABLE = (UserError, OSError, ValueError, KeyError, TypeError, AttributeError)
LOG_LINES = 60
PICTURES = (BATCH_PNG, TRAIN_HISTORY_PNG, LR_FIND_PNG)
EVALUATED = ("confusion_matrix.png", "top_losses.png")
FILES = (PARAMS, HISTORY_CSV, TRAIN_LOG, f"{EVALUATION}/per_class.csv", f"{EVALUATION}/predictions.csv", RESOLVED, META,
         REQUIREMENTS, DIFF_PATCH, CODE)  # fmt: skip


def write_experiment_pages(folders: Sequence[Path]) -> list[Path]:
    """Write the page of each experiment that has run and whose page is out of date -> those written."""
    written = []
    for folder in folders:
        with contextlib.suppress(PermissionError):  # somebody else's folder
            if (folder / RESOLVED).exists() and not is_fresh(folder):
                written.append(write_experiment_page(folder))
    return written


def is_fresh(folder: Path) -> bool:
    """Whether the page is younger than all that it shows and than the code that writes it, and links upward right."""
    page, above = folder / REPORT, report_above(folder)
    shown = [STATUS, HISTORY_JSON, METRICS_TEST, TEST_LOOKS, *PICTURES, *(f"{EVALUATION}/{name}" for name in EVALUATED)]
    sources = [folder / name for name in shown] + [
        HERE / name for name in ("page.py", "markup.py", "page.js", "page.css")
    ]
    try:
        head = page.read_bytes()[:1000].decode("utf-8", "replace")
        written = page.stat().st_mtime_ns
        is_linked = (f'rel="up" href="{href(above / REPORT, folder)}"' in head) if above else 'rel="up"' not in head
        return is_linked and all(source.stat().st_mtime_ns < written for source in sources if source.exists())
    except OSError:
        return False


# --- one experiment -------------------------------------------------------------------------------------


class Reader:
    """Reads what can be read of a folder, and keeps what was the matter with the rest."""

    def __init__(self, path: Path):
        self.folder, self.problems = Folder(path), []

    def table(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder, {} when it is missing or damaged."""
        try:
            return self.folder.record(name)
        except UNREADABLE as error:
            self.problems.append(str(error))
            return {}

    def history(self) -> list[dict[str, Any]]:
        try:
            return self.folder.history()
        except UNREADABLE as error:
            self.problems.append(str(error))
            return []


def write_experiment_page(path: Path) -> Path:
    """Write the report.html of one experiment folder that has run; what is damaged in it is said, and left out."""
    given, path = path, Path(os.path.abspath(path))
    reader = Reader(path)
    above = report_above(path)
    resolved, meta, history = reader.table(RESOLVED), reader.table(META), reader.history()
    rows, problems = read_rows([path])
    remark = problems.get(str(path), "")
    state = rows[0].status if rows else state_of(path, remark)
    best = reader.table(METRICS_BEST)
    metric = reference_name(str(resolved.get("best_metric", "accuracy")))
    body = [f"<p>{link(above / REPORT, path, f'← {above.name}')}</p>" if above else ""]
    body += [f"<h1>{text(path.name)}</h1>", f"<p>{badge(state)} {text(shorten(remark, 400)) if remark else ''}</p>"]
    body += [metrics_table(reader, best, metric), facts(resolved, meta, history)]
    series_of = experiment_series(history, metric)
    body += ["<h2>Curves</h2>" if series_of else ""]
    body += [f'<div class="few">{"".join(f_plot(name) for name in series_of)}</div>' if series_of else ""]
    body += [parameters_table(resolved)]
    evaluations = sorted(path.glob(f"{EVALUATION}*/"))
    images = [path / name for name in PICTURES] + [folder / name for folder in evaluations for name in EVALUATED]
    body += [pictures(images, path), log_tail(path / TRAIN_LOG), files(path)]
    body[3:3] = [f'<p class="wrong">{text(problem)}</p>' for problem in reader.problems]
    data = {"series": series_of, "epochs": series(history, "epoch"), "best_epoch": best.get("epoch")}
    scripts = above or path
    provide_plotly(scripts)
    write_document(path, path.name, "\n".join(filter(None, body)), data, scripts, above)
    return given / REPORT


def f_plot(name: str) -> str:
    return f'<div class="plot" data-name="{text(name)}"></div>'


def experiment_series(history: Sequence[dict[str, Any]], metric: str) -> dict[str, dict[str, list[float]]]:
    """Panel -> line -> one value per epoch: loss, the metrics, the learning rate."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in metric_names(history, [metric]):
        train, valid = series(history, training_column(name)), series(history, validation_column(name))
        found[name] = {"training": train, "validation": valid}
    rates = [row.get("learning_rate") for row in history]
    rates = [rate if isinstance(rate, list) else [rate] for rate in rates]
    for group in range(max(map(len, rates), default=0)):
        values = [rate[group] if group < len(rate) else None for rate in rates]
        line = "learning rate" if group == 0 and max(map(len, rates)) == 1 else f"layer group {group + 1}"
        found.setdefault("learning_rate", {})[line] = series([{"rate": value} for value in values], "rate")
    found = {
        panel: {line: v for line, v in lines.items() if any(map(math.isfinite, v))} for panel, lines in found.items()
    }
    return {panel: lines for panel, lines in found.items() if lines}


def metrics_table(reader: Reader, best: dict[str, Any], metric: str) -> str:
    tables = {"validation, best weights": best, "validation, last weights": reader.table(METRICS_LAST),
              "test, best weights": reader.table(METRICS_TEST)}  # fmt: skip
    tables = {name: values for name, values in tables.items() if values}
    names = dict.fromkeys(name for values in tables.values() for name in values)
    names = sorted(names, key=lambda name: (name != "epoch", name != metric, name != "loss"))
    lines = [
        [which, *("" if values.get(name) is None else number(values[name], name) for name in names)]
        for which, values in tables.items()
    ]
    if not lines:
        return ""
    looks = count_looks(reader.folder.path / TEST_LOOKS)
    remark = f'<p class="hint">{looks} look{"s" if looks != 1 else ""} at the test set.</p>'
    return table(["", *names], lines, range(1, len(names) + 1)) + remark


def number(value: Any, name: str = "") -> str:
    """A metric with four decimals; anything else as people write it."""
    return f"{value:.4f}" if isinstance(value, float) and name != "epoch" else show(value)


def facts(resolved: dict[str, Any], meta: dict[str, Any], history: Sequence[dict[str, Any]]) -> str:
    """Where the run comes from, as a list."""
    pinned, git, versions = (
        dict(value or {}) for value in (resolved.get("pinned"), meta.get("git"), meta.get("versions"))
    )
    seconds, sessions = sum(row.get("seconds") or 0 for row in history), len(meta.get("sessions") or [])
    commit = f"{str(git.get('commit', ''))[:12]} {git.get('branch', '')}" if git else ""
    size = meta.get("num_parameters")
    found = {
        "epochs": f"{len(history)}, {seconds:.1f} s" if history else "",
        "data": meta.get("data_dir"),
        "classes": len(pinned.get("classes") or []),
        "weights": f"{size:,}" if isinstance(size, int) else "",
        "command": command(*(meta.get("command") or [])),
        "started": f"{meta.get('start')} on {meta.get('host')}" if meta.get("start") else "",
        "sessions": sessions if sessions > 1 else "",
        "git": f"{commit}, changed" if git.get("dirty") else commit,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    items = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in found.items() if value)
    return f"<dl>{items}</dl>" if items else ""


def parameters_table(resolved: dict[str, Any]) -> str:
    """What differs from the defaults, with the default; then, folded away, everything."""
    ran = flatten({key: value for key, value in resolved.items() if key not in ("pinned", "hyper_search", "search")})
    defaults = flatten(params_module.DEFAULTS.resolved())
    lines = [[key, show(value) or "null", show(defaults.get(key)) or "null"] for key, value in ran.items()]
    changed = [line for line in lines if line[1] != line[2]]
    if not lines:
        return ""
    head = ["parameter", "value", "default"]
    few = table(head, changed) if changed else "<p>All at their defaults.</p>"
    return f"<h2>Parameters</h2>{few}<details><summary>all {len(lines)}</summary>{table(head, lines)}</details>"


def log_tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65_536))
            lines = file.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    except OSError:
        return ""
    return f"<h2>End of the log</h2><pre>{text(chr(10).join(shorten_line(line) for line in lines))}</pre>"


def shorten_line(line: str) -> str:
    return line if len(line) <= 400 else line[:400] + "…"


def files(path: Path) -> str:
    found = [link(path / name, path, name) for name in FILES if (path / name).exists()]
    return f"<h2>Files</h2><p>{' · '.join(found)}</p>"
