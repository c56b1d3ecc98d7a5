"""Write params.schema.json and docs/params.md from params/keys.py.

python docs/generate.py            # write both
python docs/generate.py --check    # exit 1 when one of them is stale
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from params.generate import docs, schema  # noqa: E402


def generated() -> dict[Path, str]:
    """path -> text of every generated file."""
    return {ROOT / "params.schema.json": json.dumps(schema(), indent=2) + "\n", ROOT / "docs/params.md": docs()}


if __name__ == "__main__":
    stale = [path for path, text in generated().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(path.name for path in stale)}; run python docs/generate.py" if stale else 0)
    for path in stale:
        path.write_text(generated()[path])
