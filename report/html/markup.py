"""What both kinds of report.html are made of: escaped text, tables, pictures, embedded data, plotly's script."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from folder.folder import now
from include import RECORD, RESOLVED
from report.figures import PALETTE
from utils import write_atomic

REPORT, PLOTLY = "report.html", f"{RECORD}/plotly.min.js"
HERE = Path(__file__).parent


def text(value: object) -> str:
    """Any text, safe between tags and inside quoted attributes."""
    return escape(str(value), quote=True)


def href(target: Path, start: Path) -> str:
    """The address of a file as seen from the folder `start`, safe in a quoted attribute, whatever it is called."""
    return escape(quote(os.fsencode(os.path.relpath(target, start))), quote=True)


def link(target: Path, start: Path, label: str | None = None) -> str:
    return f'<a href="{href(target, start)}">{text(label or target.name)}</a>'


def embedded(value: Any) -> str:
    """JSON for the inside of a <script> tag: nothing in it can end the tag. NaN and infinity become null."""
    plain = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value


def rounded(value: float, digits: int = 5) -> float:
    """`value` with so many significant digits: what a curve needs."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else value


def badge(state: str, remark: str = "") -> str:
    return f'<span class="badge {text(state)}">{text(f"{remark} {state}" if remark else state)}</span>'


def table(header: Sequence[str], lines: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table of plain text; the columns `numbers` are aligned to the right."""
    right = set(numbers)

    def row(tag: str, cells: Sequence[str]) -> str:
        kinds = ["number" if place in right else "long" if place else "name" for place in range(len(cells))]
        pairs = zip(kinds, cells, strict=True)
        return "<tr>" + "".join(f'<{tag} class="{kind}">{text(cell)}</{tag}>' for kind, cell in pairs) + "</tr>"

    body = "".join(row("td", line) for line in lines)
    return f'<div class="scroll"><table><thead>{row("th", header)}</thead><tbody>{body}</tbody></table></div>'


def pictures(paths: Iterable[Path], start: Path) -> str:
    """The pictures that exist, each a link to itself."""
    found = [
        f'<figure><a href="{href(path, start)}"><img loading="lazy" src="{href(path, start)}" alt="{text(path.name)}">'
        f"</a><figcaption>{text(path.name)}</figcaption></figure>"
        for path in paths
        if path.is_file()
    ]
    return f'<h2>Pictures</h2><div class="pictures">{"".join(found)}</div>' if found else ""


def report_above(path: Path) -> Path | None:
    """The nearest folder above that holds the report of several runs."""
    for above in Path(os.path.abspath(path)).parents:
        if (above / REPORT).is_file() and (above / PLOTLY).is_file() and not (above / RESOLVED).exists():
            return above
    return None


def provide_plotly(folder: Path) -> Path:
    """Put plotly's script into `folder`/record, unless it is there -> its path. It comes with the plotly package."""
    spec = importlib.util.find_spec("plotly")  # not imported: that takes longer than copying its file
    assert spec and spec.origin
    source, target = Path(spec.origin).parent / "package_data" / "plotly.min.js", folder / PLOTLY
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
    folder: Path, title: str, body: str, data: dict[str, Any], scripts: Path, above: Path | None
) -> None:
    """Write `folder`/report.html. scripts: the folder whose record/ holds plotly; above: whose report links here."""
    up = f'<link rel="up" href="{href(above / REPORT, folder)}">\n' if above else ""
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{up}<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>
{(HERE / "page.css").read_text(encoding="utf-8")}</style>
<script src="{href(scripts / PLOTLY, folder)}" defer></script>
</head>
<body>
<main>
{body}
<p class="hint">Written {text(now())} by plot_results.py, which writes it again.</p>
</main>
<script type="application/json" id="data">{embedded({"palette": PALETTE} | data)}</script>
<script>
{(HERE / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""
    write_atomic(folder / REPORT, page.encode("utf-8", "replace"))  # a file name need not be text
