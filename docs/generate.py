"""Write params.schema.json, docs/params.md and the tables of docs/house.md from the code.

python docs/generate.py            # write all three
python docs/generate.py --check    # exit 1 when one of them is stale
"""

import ast
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from params.generate import docs, schema  # noqa: E402

ROOMS = ("params", "model", "folder", "report", "engine", "search")
HOUSE = ROOT / "docs/house.md"
MARK = "<!-- From here on written by docs/generate.py, from the first line of each module. -->"


def first_line(path: Path) -> str:
    """What a module says of itself."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n", 1)[0].replace("|", "\\|")


def house() -> str:
    """docs/house.md: as it is up to MARK, then every module with what it says of itself, room by room."""
    written = HOUSE.read_text(encoding="utf-8").partition(MARK)[0]
    parts = [written + MARK, "", "## Root scripts and the ground floor\n", *module_table(sorted(ROOT.glob("*.py")))]
    for room in ROOMS:
        parts += [f"## {room}/\n", first_line(ROOT / room / "__init__.py") + "\n"]
        parts += module_table(sorted(p for p in (ROOT / room).rglob("*.py") if p.name != "__init__.py"))
    return "\n".join(parts).rstrip() + "\n"


def module_table(paths: list[Path]) -> list[str]:
    rows = [f"| `{path.relative_to(ROOT)}` | {first_line(path)} |" for path in paths]
    return ["| file | what it says of itself |", "|---|---|", *rows, ""]


def generated() -> dict[Path, str]:
    """path -> text of every generated file."""
    return {
        ROOT / "params.schema.json": json.dumps(schema(), indent=2) + "\n",
        ROOT / "docs/params.md": docs(),
        HOUSE: house(),
    }


if __name__ == "__main__":
    stale = [path for path, text in generated().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(path.name for path in stale)}; run python docs/generate.py" if stale else 0)
    for path in stale:
        path.write_text(generated()[path])
