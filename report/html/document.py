"""What both kinds of report.html share: the templates' environment, links, tables, embedded data, plotly's script."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from folder.folder import now
from include import RECORD, RESOLVED
from report.figures import PALETTE
from report.ownership import may_write
from utils import write_atomic

REPORT = "report.html"
PLOTLY = f"{RECORD}/plotly.min.js"
HERE = Path(__file__).parent
# Characters that are not seen, or that change the order in which others are read: \x1b, \u202e stand for them.
DIRECTION_MARKS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
HIDDEN = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
HIDDEN |= {code: f"\\u{code:04x}" for code in DIRECTION_MARKS}
UNFINISHED_WORDS = {"": "done", "not": "created"}  # first word of a remark that is not itself a state


# --- what templates show --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """A link, relative to the page."""

    text: str
    href: str  # percent-encoded


@dataclass(frozen=True)
class PageTable:
    """A table of plain text."""

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    number_columns: frozenset[int] = frozenset()  # aligned to the right


def link_to(target: Path, start: Path, text: str | None = None) -> Link:
    """A link to a file, as seen from the folder `start`, whatever the file is called."""
    return Link(text or target.name, quote(os.fsencode(os.path.relpath(target, start))))


def link_pictures(paths: Iterable[Path], start: Path) -> list[Link]:
    """Links to the pictures that exist."""
    return [link_to(path, start) for path in paths if path.is_file()]


def state_from_remark(remark: str) -> str:
    """The state of a folder, from the reason why it is not done."""
    word = remark.split(" ")[0].rstrip(":")
    return UNFINISHED_WORDS.get(word, word)


# --- data for the script --------------------------------------------------------------------------------


def replace_non_finite(value: object) -> object:
    """`value` with null in place of NaN and infinity, which JSON does not have; hidden characters are made visible."""
    if isinstance(value, str):
        return make_visible(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {make_visible(key): replace_non_finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(entry) for entry in value]
    return value


def round_digits(value: float, digits: int = 5) -> float:
    """`value` with this many significant digits, which are enough for a curve."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else value


# --- the page -------------------------------------------------------------------------------------------


def make_visible(value: object) -> object:
    """Text with hidden characters as escapes; markup of the page's own, and anything else, as it is."""
    return value.translate(HIDDEN) if isinstance(value, str) and not isinstance(value, Markup) else value


def breakable(text: object) -> Markup:
    """`text` that a browser may break after _ and /: names of folders and columns have no spaces."""
    return Markup(re.sub(r"([_/]+)", r"\1<wbr>", str(escape(make_visible(text)))))


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Templates of this folder; every value is escaped, and an unknown name is an error."""
    templates = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        finalize=make_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["breakable"] = breakable
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    return templates


def find_report_above(path: Path) -> Path | None:
    """The nearest folder above that holds the report of several runs."""
    for above in Path(os.path.abspath(path)).parents:
        if (above / REPORT).is_file() and (above / PLOTLY).is_file() and not (above / RESOLVED).exists():
            return above
    return None


def link_above(folder: Path) -> Link | None:
    """The link to the report of several runs above `folder`."""
    above = find_report_above(folder)
    return link_to(above / REPORT, folder, above.name) if above else None


def provide_plotly(folder: Path) -> Path:
    """Copy plotly's script into `folder`/record, unless it is there -> its path. It comes with the plotly package."""
    spec = importlib.util.find_spec("plotly")  # importing the package takes longer than copying its file
    source = Path(spec.origin if spec and spec.origin else "").parent / "package_data" / "plotly.min.js"
    target = folder / PLOTLY
    with contextlib.suppress(OSError):
        if target.stat().st_size == source.stat().st_size:
            return target
    target.parent.mkdir(exist_ok=True)
    partial = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        shutil.copyfile(source, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def write_document(
    folder: Path, template: str, values: Mapping[str, object], data: Mapping[str, object], scripts: Path
) -> Path:
    """Render `template` with `values` into `folder`/report.html -> its path.

    data: for the page's script. scripts: the folder whose record/ holds plotly.
    """
    if not may_write(folder / REPORT):
        return folder / REPORT
    page = (
        environment()
        .get_template(template)
        .render(
            title=folder.name,
            up=link_above(folder),
            css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
            script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
            plotly=link_to(scripts / PLOTLY, folder),
            written=now(),
            data=replace_non_finite({"palette": PALETTE, **data}),
            **values,
        )
    )
    path = folder / REPORT
    content = page.encode("utf-8", "replace")  # a file's name need not be valid text
    if path.is_file() and without_time(path.read_bytes()) == without_time(content):
        os.utime(path)  # it is up to date
    else:
        write_atomic(path, content)
    return path


def without_time(page: bytes) -> bytes:
    """A page without the time at which it was written."""
    return re.sub(rb'<p class="hint">Written [^ ]*', b"", page, count=1)
