"""Lenient JSON: // comments and trailing commas are forgiven, and a mistake is one line. Knows no key by name."""

import json
import math
import re
from pathlib import Path
from typing import Any

from utils import JsonObject, UserError

MAX_BYTES, MAX_DEPTH = 1 << 20, 32
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"?|//[^\n]*|\s+|[^"/\s,\[\]{}]+|.')  # linear time: distinct starts
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)  # also .5, 1. and +3, which are not JSON
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


def read_object(path: Path) -> JsonObject:
    """The JSON object in `path`; // comments and trailing commas are forgiven. UserError otherwise."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"{path}: more than 1 MiB, too many bytes for parameters")
        values = decode(without_comments(data.decode("utf-8-sig")))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f'{path}: {shorten(values)} given; possible: an object, {{"key": value, ...}}; {{}} is enough')
    return values


def without_comments(text: str) -> str:
    """`text` with blanks for // comments and trailing commas, so that line and column numbers stay."""
    out: list[str] = []
    comma, before = -1, ""
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token.startswith("//"):
            token = " " * len(token)
        elif not token.isspace():
            if token in ("]", "}") and comma >= 0:
                out[comma] = " "
            comma = len(out) if token == "," and before not in ("", ",", ":", "[", "{") else -1
            before = token
        out.append(token)
    return "".join(out)


def decode(text: str) -> Any:
    """One JSON value. ValueError also for a duplicate key, NaN, infinity, deep nesting, half a surrogate pair."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite)
        _check_depth(value)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        mistake = _describe_mistake(text, error)
        raise ValueError(f"line {error.lineno}, column {error.colno}: {mistake}") from None
    except RecursionError:
        raise ValueError(f"nested too deeply (more than {MAX_DEPTH} levels)") from None
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no character") from None
    return value


def _describe_mistake(text: str, error: json.JSONDecodeError) -> str:
    """What was written wrongly at the place where Python's parser stopped, and what to write instead."""
    rest = text[error.pos :]
    match = _TOKEN.match(rest)
    token = match[0].rstrip() if match else ""
    shown = shorten(token)
    if not text.strip():
        return "the file is empty; {} is enough"
    if error.msg.startswith("Expecting") and not token:
        return "the text ends too early: a closing } or ] is missing"
    if token.startswith("'"):
        return 'single quotes; JSON takes double quotes: "..."'
    if error.msg.startswith("Expecting ','"):
        return f"a comma is missing before {token[:60]}"
    if error.msg.startswith("Expecting ':'"):
        return f"a colon is needed between a key and its value, not {shown}"
    if error.msg.startswith("Expecting property name"):
        return "one comma too many" if token == "," else f"a key takes double quotes; {shown} given"
    if error.msg.startswith("Expecting value"):
        return _describe_value(token, is_start=not text[: error.pos].strip())
    if error.msg.startswith(("Unterminated string", "Invalid control character")):
        return 'the closing " of a text is missing on this line'
    if "escape" in error.msg:
        return r"a backslash in a text is written twice: \\"
    return "something follows the closing }" if error.msg == "Extra data" else error.msg


def _describe_value(token: str, is_start: bool) -> str:
    """What is wrong with `token`, which stands in the place of a value."""
    if is_start:
        return 'this is not JSON, which begins with {, as in {"arch": "resnet9"}'
    if token in _WORDS:
        return f"{token} is Python; JSON writes {json.dumps(_WORDS[token])}"
    if _NUMBER.fullmatch(token):
        return f"{token} is not a JSON number; write {json.dumps(float(token))}"
    if token in (",", "}", "]"):
        return f"a value is missing before {token}"
    return f'a text takes double quotes: "{token[:60]}"; a comment begins with //'


def decode_word(text: str) -> Any:
    """Parse a word of the command line: a number, a JSON value, or else a string. ValueError as in `decode`."""
    word = text.strip()
    if word in _WORDS:
        return _WORDS[word]
    if _NUMBER.fullmatch(word):
        return int(word) if word.lstrip("+-").isdigit() else _finite(word)
    if word[:1] in ("[", "{", '"') or word.lstrip("-") in ("NaN", "Infinity"):
        return decode(word)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not UTF-8 text") from None
    return text


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    values: JsonObject = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"key {shorten(name)} is given twice")
        values[name] = value
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number; a finite number is expected")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{shorten(text)} is beyond the range of a float")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nodes = [node for node in level if isinstance(node, dict | list)]
        level = [child for node in nodes for child in (node.values() if isinstance(node, dict) else node)]
    if level:
        raise RecursionError


def shorten(value: Any) -> str:
    """JSON of `value` on one line, at most 60 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
