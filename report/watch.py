"""A live table of running folders: how far, how fast, how good so far, how long still, and when last heard of."""

from __future__ import annotations

import datetime
import shutil
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from folder.history import best_row, recorded_minimized, validation_column
from include import HISTORY_JSON, META, RESOLVED, STATUS
from report.rows import read_value, status_of
from report.tables import printable
from utils import UserError, reference_name

STALE = 60  # seconds without a sign from a running process; it gives one at least at each epoch's end
LIVE = ("running", "killed")
CLEAR, HOME = "\x1b[2J\x1b[H", "\x1b[H\x1b[J"  # ANSI: all of the screen; from its top, everything below


def look(path: Path, name: str, now: datetime.datetime) -> dict[str, Any]:
    """One line of the table. UserError, or whatever a file of another shape causes, when the folder is malformed."""
    status = read_value(str(path / STATUS), dict, {})
    state = status_of(status)
    if state not in LIVE:
        return {"folder": name, "state": state}
    resolved, meta = (read_value(str(path / file), dict, {}) for file in (RESOLVED, META))
    history = read_value(str(path / HISTORY_JSON), list, [])
    metric = reference_name(str(resolved.get("best_metric", "accuracy")))
    best = best_row(history, metric, recorded_minimized(meta))
    line = {"folder": name, "state": state, "metric": metric, "best": best[validation_column(metric)] if best else None}
    line |= progress(status, history, resolved.get("num_epochs"))
    silence = (now - datetime.datetime.fromisoformat(status["updated"])).total_seconds()
    return line | {"silence": max(0.0, silence)}


def progress(status: dict[str, Any], history: Sequence[dict[str, Any]], num_epochs: float | None) -> dict[str, Any]:
    """Epochs done and to do, steps, images/s, seconds to the end; None for what the first epoch has yet to show."""
    step, done = status.get("step", 0), history[-1] if history else None
    found: dict[str, Any] = {"epoch": 0.0, "of": num_epochs, "step": step, "of_steps": None, "rate": None, "left": None}
    if not done:
        return found
    steps = done["step"] / done["epoch"]  # of an epoch
    found |= {"epoch": step / steps, "rate": done.get("images_per_second")}
    seconds = statistics.median(row.get("seconds") or 0.0 for row in history[-3:])
    if num_epochs:
        total = round(steps * num_epochs)
        found |= {"of_steps": total, "left": max(0, total - step) / steps * seconds}
    return found


def watch(folders: Sequence[Path], parent: Path | None, now: datetime.datetime | None = None) -> tuple[str, int]:
    """(the table as text, how many folders run). Never fatal."""
    now = now or datetime.datetime.now(datetime.UTC)
    lines, others = [], Counter()
    for path in folders:
        name = str(path.relative_to(parent)) if parent and path != parent else str(path)
        try:
            line = look(path, name, now)
        except (UserError, KeyError, TypeError, ValueError, AttributeError, OSError, ArithmeticError):
            others["malformed"] += 1
            continue
        if line["state"] in LIVE:
            lines.append(line)
        else:
            others[line["state"]] += 1
    num = sum(line["state"] == "running" for line in lines)
    summary = ", ".join(f"{count} {state}" for state, count in [("running", num), *others.most_common()])
    parts = [f"{now.astimezone():%H:%M:%S}  {summary}", show_lines(lines) if lines else ""]
    return printable("\n\n".join(part for part in parts if part) + "\n"), num


def show_lines(lines: Sequence[dict[str, Any]]) -> str:
    from tabulate import tabulate

    header = ["folder", "epoch", "step", "images/s", "best so far", "time left", ""]
    rows = []
    for line in lines:
        epoch = f"{line['epoch']:.1f}/{line['of'] or 0:g}"
        step = f"{line['step']:,}" + (f"/{line['of_steps']:,}" if line["of_steps"] else "")
        rate = f"{line['rate']:,.0f}" if line["rate"] else ""
        best = f"{line['metric']} {line['best']:.4f}" if line["best"] is not None else ""
        left = duration(line["left"]) if line["left"] is not None and line["state"] == "running" else ""
        rows.append([line["folder"], epoch, step, rate, best, left, sign_of_life(line)])
    align = ["left", "right", "right", "right", "left", "right", "left"]
    return tabulate(rows, header, tablefmt="simple", disable_numparse=True, colalign=align)


def sign_of_life(line: dict[str, Any]) -> str:
    """What is wrong with a folder that says it runs, "" when nothing is."""
    if line["state"] == "killed":
        return "killed: its process is gone"
    return f"no sign for {duration(line['silence'])}" if line["silence"] > STALE else ""


def duration(seconds: float) -> str:
    """95 s, 12 min, 3 h 05 min, 2 d 4 h."""
    seconds = round(seconds)
    if seconds < 120:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def fit(text: str) -> str:
    """`text` cut to the terminal, so that it can be drawn over in place."""
    width, height = shutil.get_terminal_size()
    lines = [line if len(line) <= width else line[: width - 1] + "…" for line in text.splitlines()]
    if len(lines) >= height:
        lines = [*lines[: height - 2], f"… {len(lines) - height + 2} more lines"]
    return "\n".join(lines)
