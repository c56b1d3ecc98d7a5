"""params.json -> Params: reading, `base`, overrides from the command line, and messages that name the nearest key.

May import include and utils; no torch: registry names (nets, losses, ...) are plain strings here, and their registries
check them. Start reading at keys.py (every key), then load.py (from files to Params). names.py knows
aliases and synonyms, mistakes.py explains what is wrong, overrides.py reads the command line, paths.py knows what
paths are relative to, jsonc.py reads lenient JSON.
"""

from params.jsonc import read_object
from params.load import (
    DEFAULTS,
    Params,
    deep_merge,
    from_resolved,
    from_written,
    load,
    load_written,
    read,
    relative_path,
)
from params.names import ALIASES, HABITS, SECTIONS, SYNONYMS, key_path
from params.overrides import parse_overrides
from params.paths import is_weights_tag, locate_overrides, move_paths
from params.sections import Positive, SearchKeys, Strict, Text

__all__ = [
    "ALIASES",
    "DEFAULTS",
    "HABITS",
    "SECTIONS",
    "SYNONYMS",
    "Params",
    "Positive",
    "SearchKeys",
    "Strict",
    "Text",
    "deep_merge",
    "from_resolved",
    "from_written",
    "is_weights_tag",
    "key_path",
    "load",
    "load_written",
    "locate_overrides",
    "move_paths",
    "parse_overrides",
    "read",
    "read_object",
    "relative_path",
]
