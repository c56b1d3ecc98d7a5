"""Paths among the values of params.json: which values are paths, and which folder each is relative to."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from params.names import FREE, PATHS
from utils import Json, JsonObject

# Published weights by name, in "pretrain": IMAGENET1K_V2, ResNet50_Weights.IMAGENET1K_V1, a1_in1k.
_TAG = re.compile(r"\w+|\w+_Weights\.\w+")
_OWN = ("", "best", "last")  # weights of the experiment itself


def is_weights_tag(value: object) -> bool:
    """True when `value` of "pretrain" names published weights; a file has a suffix, and a folder is written "./NAME".

    An experiment folder or a file that is there under such a name is read as "./NAME".
    """
    return isinstance(value, str) and _TAG.fullmatch(value) is not None


def move_paths(values: JsonObject, prefix: str) -> JsonObject:
    """`values` of one folder, rewritten for another folder from which the first is reached as `prefix`.

    Paths and FILE.py:NAME change: they are relative to the folder of the file that holds them.
    """

    def move(name: str, value: str) -> str:
        is_path = name in PATHS and value not in _OWN and not value.startswith("~")
        is_path = is_path and not (name == "pretrain" and is_weights_tag(value))
        return os.path.join(prefix, value) if is_path or re.search(r"\.py:\w+$", value) else value

    return _change_texts(values, move)


def mark_paths(values: JsonObject, folder: Path) -> JsonObject:
    """`values` of a file in `folder`, with "./NAME" where "pretrain" could be a tag but a file or folder is there."""

    def mark(name: str, value: str) -> str:
        return f"./{value}" if name == "pretrain" and is_weights_tag(value) and (folder / value).exists() else value

    return _change_texts(values, mark)


def locate_overrides(values: JsonObject, folder: Path) -> JsonObject:
    """`values` from the command line, relative to the experiment `folder`.

    A relative path means what is there in the shell's folder; what is not there is looked for in the experiment.
    """

    def locate(name: str, value: str) -> str:
        if name not in PATHS or value in _OWN or os.path.isabs(value) or not os.path.exists(value):
            return value
        # The folder may be reached through links: ".." leads out of what they point to.
        moved = os.path.relpath(os.path.abspath(value), folder.resolve())
        return f"./{moved}" if is_weights_tag(moved) else moved

    return _change_texts(values, locate)


def _change_texts(values: JsonObject, change: Callable[[str, str], str]) -> JsonObject:
    """`values` with change(key, text) in place of each text, in sections and spaces too."""

    def visit(value: Json, name: str) -> Json:
        if isinstance(value, list):
            return [visit(item, name) for item in value]
        if isinstance(value, dict):
            return {key: visit(item, key if key in PATHS else name) for key, item in value.items()}
        return change(name, value) if isinstance(value, str) else value

    return {name: value if name in FREE else visit(value, name) for name, value in values.items()}
