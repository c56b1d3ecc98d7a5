"""What docs/generate.py writes: params.schema.json and docs/params.md."""

from params.load import Params
from params.names import ALIASES, SECTIONS
from params.schema import editor_schema, tables
from utils import JsonObject

_INTRO = """# params.json

Written by `python docs/generate.py`; do not edit. Every key has a default: `{}` is a valid file. `//` comments and
trailing commas are allowed. `null` is possible where the type says so. 0/1 keys also take `true` and `false`.

- `base`: another experiment folder or JSON file, relative to this file; this file overrides it. Sections and
  dictionaries merge, lists and values replace. A file that states another `arch` (`optimizer`) does not inherit
  `arch_args` (`optimizer_args`). Relative paths in the base still name the same files.
- Paths, also those in `FILE.py:NAME`, are relative to the folder of the file. On the command line a path means what is
  there in the shell's folder, else in the experiment (`FILE.py:NAME`: always in the experiment); what is recorded is
  relative to the experiment. In `pretrain` a word without a suffix is a tag of published weights; a folder is written
  `./NAME`.
- Every key can be given on the command line: `--learning_rate=0.1 --early_stopping.patience 3`. `--model=lenet
  --model.n_filters=10` means `arch` and `arch_args`.
- An alias means the same as its key; give only one of the two.
"""


def schema() -> JsonObject:
    """JSON Schema of params.json for editors."""
    text = {"type": "string", "minLength": 1}
    base = text | {"description": "Another experiment folder or JSON file, relative to this file, which overrides it."}
    return editor_schema(Params, ALIASES, {"$schema": {"type": "string"}, "base": base})


def docs() -> str:
    """docs/params.md."""
    return tables(Params, SECTIONS, _INTRO)
