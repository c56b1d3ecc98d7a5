"""Which tables and pages this kit wrote: those of another hand are left alone."""

from __future__ import annotations

from pathlib import Path

from utils import say

RESULTS_MD, RESULTS_CSV = "results.md", "results.csv"
CSV_START = b"folder,"  # of every results.csv that the kit wrote; it writes results.md beside it
MD_START = b"| folder "  # of a results.md without several seeds
PAGE_START = b'<script type="application/json" id="data">'


def is_ours(path: Path) -> bool:
    """True when nothing is at `path`, or what this kit wrote: an earlier results.md, results.csv or report.html."""
    if not path.exists():
        return True
    try:
        if path.suffix == ".html":
            return PAGE_START in path.read_bytes()
        table = path.with_name(RESULTS_CSV)
        is_beside = table.is_file() and table.read_bytes().startswith(CSV_START)
        return is_beside or (path.suffix == ".md" and path.read_bytes().startswith(MD_START))
    except OSError:
        return False


def may_write(path: Path) -> bool:
    """is_ours, and a line on stderr where it is not."""
    if is_ours(path):
        return True
    say(f"{path} was not written by this kit: left alone; to have it written, move it away")
    return False
