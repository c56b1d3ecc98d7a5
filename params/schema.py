"""The JSON Schema of params.json: in words, for messages; as JSON, for editors; as Markdown, for docs/params.md."""

import json
from collections.abc import Mapping

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from utils import JsonObject

_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "greater than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


def node_of(schema: JsonObject, path: list[str]) -> JsonObject:
    """The part of a JSON Schema that governs the key at `path`; {} when there is none."""
    node = schema
    for name in path:
        choices = [_follow(schema, choice) for choice in node.get("anyOf", [node])]
        node = next((c["properties"][name] for c in choices if name in c.get("properties", {})), {})
    return node


def _follow(schema: JsonObject, node: JsonObject) -> JsonObject:
    return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def describe(schema: JsonObject, node: JsonObject) -> str:
    """What a schema node allows, in words: "integer at least 1, or null"."""
    node = _follow(schema, node)
    if "anyOf" in node:
        return ", or ".join(dict.fromkeys(describe(schema, choice) for choice in node["anyOf"]))
    if "enum" in node or "const" in node:
        values = node.get("enum", [node.get("const")])
        return " | ".join(repr(value) if isinstance(value, str) else json.dumps(value) for value in values)
    kind = node.get("type", "any value")
    if kind in ("integer", "number"):
        limits = " and ".join(f"{sign} {node[word]:g}" for word, sign in _LIMITS.items() if word in node)
        return f"{kind} {limits}".rstrip()
    if kind == "array":
        exactly = f"exactly {node['minItems']} " if node.get("minItems", 0) == node.get("maxItems", -1) else ""
        return f"list of {exactly}({describe(schema, node.get('items', {}))})"
    if kind == "object":
        return f"object with {', '.join(node['properties'])}" if "properties" in node else "object"
    return kind


def words_of(schema: JsonObject, node: JsonObject) -> list[str]:
    """The strings that a schema node lists."""
    choices = node.get("anyOf", [node])
    values = [value for choice in choices for value in choice.get("enum", [choice.get("const")])]
    return [value for value in values if isinstance(value, str)]


def editor_schema(model: type[BaseModel], aliases: dict[str, str], extra: JsonObject) -> JsonObject:
    """JSON Schema of `model` for editors: completion, hover texts, checks; with aliases and `extra` keys."""
    schema = model.model_json_schema()
    for node in [schema, *schema["$defs"].values()]:
        node["properties"] = {
            name: {word: value for word, value in prop.items() if word not in ("title", "group", "alias")}
            for name, prop in node["properties"].items()
        }
    properties = schema["properties"]
    of_aliases = {
        alias: properties[name] | {"description": f"Same as {name}: {properties[name]['description']}"}
        for alias, name in aliases.items()
    }
    never_both = [{"not": {"required": [name, alias]}} for alias, name in aliases.items()]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "params.json"}
    lenient = {"allowComments": True, "allowTrailingCommas": True}  # extensions understood by VS Code's JSON mode
    body = {word: value for word, value in schema.items() if word not in ("title", "properties", "$defs")}
    return (
        head
        | body
        | lenient
        | {"allOf": never_both, "properties": extra | properties | of_aliases, "$defs": schema["$defs"]}
    )


def tables(model: type[BaseModel], sections: Mapping[str, type[BaseModel]], intro: str) -> str:
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


def _row(schema: JsonObject, path: list[str], field: FieldInfo, alias: str) -> str:
    default = field.get_default(call_default_factory=True)
    default = {} if isinstance(default, BaseModel) else default
    stands = "required" if field.is_required() else f"`{json.dumps(default)}`"
    kind = describe(schema, node_of(schema, path)).replace("|", "\\|")
    alias = f"`{alias}`" if alias else ""
    return f"| `{'.'.join(path)}` | {alias} | {kind} | {stands} | {field.description} |\n"
