"""How params.json is read and explained: JSON with comments, JSON Schema, its words. Knows no key by name."""

import json
import math
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from utils import UserError

MAX_BYTES, MAX_DEPTH = 1 << 20, 32
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"?|//[^\n]*|\s+|[^"/\s,\[\]{}]+|.')  # linear: no two branches share a start
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)  # also .5, 1. and +3, which JSON has not
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


# --- reading ----------------------------------------------------------------------------------------


def read_object(path: Path) -> dict[str, Any]:
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
        raise UserError(f'{path}: {shorten(values)} given; possible: an object, {{"key": value, ...}}; {{}} will do')
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
    """One JSON value. ValueError also for a duplicate key, NaN, infinity, great depth, half a character."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite)
        _check_depth(value)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"nested too deeply (more than {MAX_DEPTH} levels)") from None
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no character") from None
    return value


def decode_word(text: str) -> Any:
    """What a word of the command line means: a number, a JSON value, or itself. ValueError as `decode`."""
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"key {shorten(name)} is given twice")
        values[name] = value
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number; a finite one is wanted")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{shorten(text)} is beyond the range of a float")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [child for node in level if isinstance(node, dict | list)
                 for child in (node.values() if isinstance(node, dict) else node)]  # fmt: skip
    if level:
        raise RecursionError


def shorten(value: Any) -> str:
    """JSON of `value` on one line, at most 60 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- explaining -------------------------------------------------------------------------------------

_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "greater than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


def node_of(schema: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """The part of a JSON Schema that governs the key at `path`; {} when it says nothing."""
    node = schema
    for name in path:
        choices = [_follow(schema, choice) for choice in node.get("anyOf", [node])]
        node = next((c["properties"][name] for c in choices if name in c.get("properties", {})), {})
    return node


def _follow(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def describe(schema: dict[str, Any], node: dict[str, Any]) -> str:
    """What a schema node allows, in words: "integer at least 1, or null"."""
    node = _follow(schema, node)
    if "anyOf" in node:
        return ", or ".join(dict.fromkeys(describe(schema, choice) for choice in node["anyOf"]))
    if "enum" in node or "const" in node:
        return " | ".join(
            repr(v) if isinstance(v, str) else json.dumps(v) for v in node.get("enum", [node.get("const")])
        )
    kind = node.get("type", "any value")
    if kind in ("integer", "number"):
        limits = " and ".join(f"{sign} {node[word]:g}" for word, sign in _LIMITS.items() if word in node)
        return f"{kind} {limits}".rstrip()
    if kind == "array":
        exactly = f"{node['minItems']} times " if node.get("minItems", 0) == node.get("maxItems", -1) else ""
        return f"list of {exactly}({describe(schema, node.get('items', {}))})"
    if kind == "object":
        return f"object with {', '.join(node['properties'])}" if "properties" in node else "object"
    return kind


def words_of(schema: dict[str, Any], node: dict[str, Any]) -> list[str]:
    """The strings that a schema node lists."""
    return [word for choice in node.get("anyOf", [node]) for word in choice.get("enum", [choice.get("const")])
            if isinstance(word, str)]  # fmt: skip


def editor_schema(model: type[BaseModel], aliases: dict[str, str], extra: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of `model` for editors: completion, hover texts, checks; with aliases and `extra` keys."""
    schema = model.model_json_schema()
    for node in [schema, *schema["$defs"].values()]:
        node["properties"] = {
            name: {word: value for word, value in prop.items() if word not in ("title", "group", "alias")}
            for name, prop in node["properties"].items()
        }
    properties = schema["properties"]
    twins = {alias: properties[name] | {"description": f"Same as {name}: {properties[name]['description']}"}
             for alias, name in aliases.items()}  # fmt: skip
    never_both = [{"not": {"required": [name, alias]}} for alias, name in aliases.items()]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "params.json"}
    lenient = {"allowComments": True, "allowTrailingCommas": True}  # what VS Code's JSON mode understands
    body = {word: value for word, value in schema.items() if word not in ("title", "properties", "$defs")}
    return (
        head
        | body
        | lenient
        | {"allOf": never_both, "properties": extra | properties | twins, "$defs": schema["$defs"]}
    )


def tables(model: type[BaseModel], sections: dict[str, type[BaseModel]], intro: str) -> str:
    """Markdown: `intro`, then one table of keys per group, then one per section."""
    schema = model.model_json_schema()
    rows: dict[str, list[str]] = {}
    for name, field in model.model_fields.items():
        facts = field.json_schema_extra
        assert isinstance(facts, dict)
        rows.setdefault(str(facts["group"]), []).append(_row(schema, [name], field, str(facts.get("alias", ""))))
    for section, cls in sections.items():
        rows[f"`{section}`"] = [_row(schema, [section, name], field, "") for name, field in cls.model_fields.items()]
    head = "| key | alias | type | default | meaning |\n|---|---|---|---|---|\n"
    return intro + "".join(f"\n## {group}\n\n{head}{''.join(lines)}" for group, lines in rows.items())


def _row(schema: dict[str, Any], path: list[str], field: Any, alias: str) -> str:
    default = field.get_default(call_default_factory=True)
    default = {} if isinstance(default, BaseModel) else default
    stands = "required" if field.is_required() else f"`{json.dumps(default)}`"
    kind = describe(schema, node_of(schema, path)).replace("|", "\\|")
    alias = f"`{alias}`" if alias else ""
    return f"| `{'.'.join(path)}` | {alias} | {kind} | {stands} | {field.description} |\n"
