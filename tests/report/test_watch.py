"""The live table: pace, time left and signs of life, by hand."""

import os

import pytest

from report.watch import LiveRun, Pace, fit_terminal, format_duration, format_runs, measure_pace, warn_if_silent


def make_history(seconds):
    return [{"epoch": n, "step": 10 * n, "seconds": s, "images_per_second": 100.0} for n, s in enumerate(seconds, 1)]


def test_pace_by_hand():
    # 25 of 50 steps done; the median of the last three epochs is 4 s per 10 steps
    pace = measure_pace({"step": 25}, make_history([100, 4.0, 9.0, 2.0]), 5)
    assert pace == Pace(2.5, 5, 25, 50, 100.0, 10.0)


def test_before_the_first_epoch_ends_and_without_an_end():
    assert measure_pace({"step": 3}, [], 5) == Pace(0.0, 5, 3)
    pace = measure_pace({"step": 15}, make_history([4.0]), None)
    assert (pace.epoch, pace.num_steps, pace.seconds_left) == (1.5, None, None)


def test_part_of_an_epoch_and_more_steps_than_planned():
    assert measure_pace({"step": 10}, make_history([4.0]), 2.56).num_steps == 26
    assert measure_pace({"step": 30}, make_history([4.0]), 2).seconds_left == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (119.4, "119 s"),
        (119.6, "2 min"),
        (3569, "59 min"),
        (3570.6, "1 h 00 min"),
        (86_340, "23 h 59 min"),
        (86_400, "1 d 0 h"),
        (180_000, "2 d 2 h"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def make_live_run(state="running", silence=0.0, best: float | None = 0.91234) -> LiveRun:
    return LiveRun("a", state, "accuracy", best, Pace(1.25, 4, 1250, 4000, 1234.4, 90.0), silence)


@pytest.mark.parametrize(
    ("state", "silence", "warning"),
    [("running", 60.0, ""), ("running", 61.0, "no sign for 61 s"), ("killed", 0.0, "killed: its process is gone")],
)
def test_signs_of_life(state, silence, warning):
    assert warn_if_silent(make_live_run(state, silence)) == warning


def test_a_line_of_the_table():
    line = format_runs([make_live_run()]).splitlines()[-1]
    assert line.split() == ["a", "1.2/4", "1,250/4,000", "1,234", "accuracy", "0.9123", "90", "s"]
    line = format_runs([make_live_run("killed", best=None)]).splitlines()[-1]
    assert line.split() == ["a", "1.2/4", "1,250/4,000", "1,234", "killed:", "its", "process", "is", "gone"]


def test_the_table_fits_the_terminal(monkeypatch):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((10, 4)))
    assert fit_terminal("x" * 10) == "x" * 10
    assert fit_terminal("x" * 11) == "x" * 9 + "…"
    assert fit_terminal("a\nb\nc") == "a\nb\nc"
    assert fit_terminal("a\nb\nc\nd") == "a\nb\n… 2 more lines"
