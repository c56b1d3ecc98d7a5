"""What every room uses: the machine's cores, against the kernel's own word; a Python without the packages."""

import os
import sys

import pytest

from utils import num_cores, run_command


def test_a_python_without_the_packages_is_said_in_one_line(capsys):
    def wrong_python(argv):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    assert run_command(wrong_python, []) == 5
    line = f"error: torch is not installed in {sys.prefix}. ./setup.sh installs it; then: source .venv/bin/activate\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'engine.gone'", name="engine.gone"),
        AttributeError("no attribute", name="numpy"),
    ],
)
def test_what_is_missing_in_the_kit_is_a_bug(capsys, error):
    def bug(argv):
        raise error

    assert run_command(bug, []) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_cores_are_those_that_this_process_may_use():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert num_cores() == len(before)
