"""What is wrong with the values of params.json, in one line: the key, what was given, what is possible."""

from typing import Any

from pydantic import ValidationError

from params.jsonc import shorten
from params.keys import Keys
from params.names import FREE, SECTIONS, suggest
from params.schema import describe, node_of, words_of
from utils import nearest

SECTION_EXAMPLES = {
    "early_stopping": {"patience": 3},
    "freeze": {"groups": 2, "epochs": 1},
    "progressive": {"initial_scale": 0.5},
    "search": {"sampler": "random", "num_trials": 30},
}


def explain(error: ValidationError) -> tuple[list[str], str]:
    """(path of the key, one line) for the first mistake: what was given, what is possible."""
    mistakes = error.errors(include_url=False, include_context=False)
    if not mistakes[0]["loc"]:
        text = mistakes[0]["msg"].removeprefix("Value error, ")
        return text.partition(":")[0].split("."), text
    top = str(mistakes[0]["loc"][0])
    mistake = max((m for m in mistakes if m["loc"][0] == top), key=lambda m: len(m["loc"]))  # closest of a union
    is_unknown = mistake["type"] == "extra_forbidden"
    keys_of_section = SECTIONS[top].model_fields if top in SECTIONS else {}
    inner = [str(part) for part in mistake["loc"][1:] if part in keys_of_section or (is_unknown and top in SECTIONS)]
    path = [top, *inner[-1:]]
    name = ".".join(path)
    if is_unknown:
        return path, f"unknown key {shorten(name)}; {suggest(path[-1], top)}"
    schema = Keys.model_json_schema()
    node = node_of(schema, path)
    possible = f"possible: {describe(schema, node)}"
    if mistake["type"] == "missing":
        return path[:1], f"{name}: missing; {possible}"
    place = name + "".join(f"[{part}]" for part in mistake["loc"] if isinstance(part, int))
    wrong = mistake["input"]
    near = nearest(wrong[:60], words_of(schema, node)) if isinstance(wrong, str) else ""
    hint = f"; {near}" if near.startswith("did") else ""
    if name in SECTION_EXAMPLES and not isinstance(wrong, dict):
        hint = f"; for example {shorten({name: SECTION_EXAMPLES[name]})[1:-1]}"
    return path, f"{place}: {shorten(wrong)} given; {possible}{hint}"


def check_space(keys: Keys, name: str, space: Any) -> None:
    """ValueError unless `space`, which is hyper_search[name], lists possible values or is a range or choice of them."""
    place = shorten(f"hyper_search.{name}")[1:-1]
    given = f"{shorten(space)} given"
    # find the values to try
    values = space
    if isinstance(space, dict) and set(space) == {"choice"}:
        values = space["choice"]
    elif isinstance(space, dict) and {"min", "max"} <= set(space) <= {"min", "max", "log", "int"}:
        values = [space["min"], space["max"]]
        _check_range(space, f"{place}: {given}")
    if not isinstance(values, list) or not values:
        possible = '[values], {"min": A, "max": B, "log": true, "int": true}, {"choice": [values]}'
        raise ValueError(f"{place}: {given}; possible: {possible}")
    # try each of them
    top, *rest = name.split(".")
    if rest and top in FREE:
        return
    resolved = keys.model_dump()
    for value in values:
        change = (resolved[top] or {}) | {rest[0]: value} if rest and top in SECTIONS else value
        try:
            type(keys).model_validate(resolved | {top: change})
        except ValidationError as error:
            if error.errors()[0]["loc"]:  # values that clash with another key are allowed: that key may be searched too
                raise ValueError(f"hyper_search: {explain(error)[1]}") from None


def _check_range(space: dict[str, Any], given: str) -> None:
    """ValueError unless min and max are numbers in order, and log and int are booleans."""
    low, high = space["min"], space["max"]
    is_log = space.get("log", False)
    are_numbers = type(low) in (int, float) and type(high) in (int, float)
    if not are_numbers or is_log not in (0, 1) or space.get("int", False) not in (0, 1):
        raise ValueError(f"{given}; possible: numbers for min and max, true or false for log and int")
    if low >= high or (is_log and low <= 0):
        raise ValueError(f"{given}; a range needs min below max{', and > 0 with log' if is_log else ''}")
