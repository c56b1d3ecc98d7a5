"""A live table of running folders: progress, speed, best value so far, time left, and the last sign of life."""

from __future__ import annotations

import datetime
import shutil
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from folder.history import best_row, recorded_minimized, validation_column
from folder.older_templates import is_of_another_kit
from include import HISTORY_JSON, META, RESOLVED, STATUS
from report.formats import replace_surrogates
from report.json_files import History, JsonObject, read_history, read_object
from report.rows import FOREIGN, current_state, metric_name
from utils import UserError

SILENT_AFTER = 60  # seconds without a sign from a running process; it gives one at least at the end of each epoch
LIVE_STATES = ("running", "killed")
CLEAR = "\x1b[2J\x1b[H"  # ANSI: clear the screen, cursor to its top
HOME = "\x1b[H\x1b[J"  # ANSI: cursor to the top, clear everything below


@dataclass(frozen=True)
class Pace:
    """How far a run has come and how fast it is; None for what is unknown before the first epoch ends."""

    epoch: float
    num_epochs: float | None
    step: int
    num_steps: int | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class LiveRun:
    """A folder that says it is running."""

    folder: str
    state: str  # running or killed
    metric: str
    best: float | None  # value of the metric at the best epoch so far
    pace: Pace
    silence: float  # seconds since its last sign of life


def read_live_run(path: Path, name: str, now: datetime.datetime) -> tuple[str, LiveRun | None]:
    """(the state of a folder, the run if it is a live one).

    UserError, or the KeyError, TypeError, ... that unexpected content causes, when a file is malformed.
    """
    status = read_object(str(path / STATUS)) or {}
    state = current_state(status)
    if state not in LIVE_STATES:
        is_foreign = not status and is_of_another_kit(path)
        return FOREIGN if is_foreign else state, None
    resolved = read_object(str(path / RESOLVED)) or {}
    meta = read_object(str(path / META)) or {}
    history = read_history(str(path / HISTORY_JSON)) or []
    metric = metric_name(resolved)
    best = best_row(history, metric, recorded_minimized(meta))
    silence = (now - datetime.datetime.fromisoformat(status["updated"])).total_seconds()
    pace = measure_pace(status, history, resolved.get("num_epochs"))
    return state, LiveRun(
        name, state, metric, best[validation_column(metric)] if best else None, pace, max(0.0, silence)
    )


def measure_pace(status: JsonObject, history: History, num_epochs: float | None) -> Pace:
    """The time left is estimated from the median duration of the last three epochs."""
    step = status.get("step", 0)
    if not history:
        return Pace(0.0, num_epochs, step)
    last = history[-1]
    steps_per_epoch = last["step"] / last["epoch"]
    num_steps = seconds_left = None
    if num_epochs:
        num_steps = round(steps_per_epoch * num_epochs)
        seconds_per_epoch = statistics.median(epoch.get("seconds") or 0.0 for epoch in history[-3:])
        seconds_left = max(0, num_steps - step) / steps_per_epoch * seconds_per_epoch
    return Pace(step / steps_per_epoch, num_epochs, step, num_steps, last.get("images_per_second"), seconds_left)


def watch(folders: Sequence[Path], parent: Path | None, now: datetime.datetime | None = None) -> tuple[str, int]:
    """(the table as text, the number of running folders). Never fatal."""
    now = now or datetime.datetime.now(datetime.UTC)
    runs: list[LiveRun] = []
    other_states: Counter[str] = Counter()
    for path in folders:
        name = str(path.relative_to(parent)) if parent and path != parent else str(path)
        try:
            state, run = read_live_run(path, name, now)
        except (UserError, KeyError, TypeError, ValueError, AttributeError, OSError, ArithmeticError):
            state, run = "malformed", None
        if run:
            runs.append(run)
        else:
            other_states[state] += 1
    num_running = sum(run.state == "running" for run in runs)
    counts = ", ".join(f"{num} {state}" for state, num in [("running", num_running), *other_states.most_common()])
    parts = [f"{now.astimezone():%H:%M:%S}  {counts}", format_runs(runs) if runs else ""]
    return replace_surrogates("\n\n".join(part for part in parts if part) + "\n"), num_running


def format_runs(runs: Sequence[LiveRun]) -> str:
    """The table of the live runs."""
    from tabulate import tabulate

    header = ["folder", "epoch", "step", "images/s", "best so far", "time left", ""]
    alignment = ["left", "right", "right", "right", "left", "right", "left"]
    return tabulate(map(_cells, runs), header, tablefmt="simple", disable_numparse=True, colalign=alignment)


def _cells(run: LiveRun) -> list[str]:
    pace = run.pace
    epoch = f"{pace.epoch:.1f}/{pace.num_epochs or 0:g}"
    step = f"{pace.step:,}" + (f"/{pace.num_steps:,}" if pace.num_steps else "")
    speed = f"{pace.images_per_second:,.0f}" if pace.images_per_second else ""
    best = f"{run.metric} {run.best:.4f}" if run.best is not None else ""
    is_timed = pace.seconds_left is not None and run.state == "running"
    left = format_duration(pace.seconds_left or 0.0) if is_timed else ""
    return [run.folder, epoch, step, speed, best, left, warn_if_silent(run)]


def warn_if_silent(run: LiveRun) -> str:
    """What is wrong with a live run, "" when nothing is."""
    if run.state == "killed":
        return "killed: its process is gone"
    return f"no sign for {format_duration(run.silence)}" if run.silence > SILENT_AFTER else ""


def format_duration(seconds: float) -> str:
    """95 s, 12 min, 3 h 05 min, 2 d 4 h."""
    seconds = round(seconds)
    if seconds < 120:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def fit_terminal(text: str) -> str:
    """`text` cut to the terminal, so that the next table can be drawn over it."""
    width, height = shutil.get_terminal_size()
    lines = [line if len(line) <= width else line[: width - 1] + "…" for line in text.splitlines()]
    if len(lines) >= height:
        lines = [*lines[: height - 2], f"… {len(lines) - height + 2} more lines"]
    return "\n".join(lines)
