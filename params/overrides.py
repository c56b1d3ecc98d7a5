"""The command line -> overrides: --KEY=VALUE and --KEY VALUE, for every key of params.json by its dotted name."""

from params.jsonc import decode_word, shorten
from params.load import merge
from params.names import key_path
from utils import Json, JsonObject, UserError


def parse_overrides(argv: list[str]) -> JsonObject:
    """["--wd=0.1", "--early-stopping.patience", "3"] -> {"wd": 0.1, "early_stopping": {"patience": 3}}.

    Values are JSON; bare words are strings. --model and --model.KEY mean arch and arch_args.KEY. Of two equal
    flags the last one wins. UserError for an unknown key, a flag without value, a key and its alias together.
    """
    values: JsonObject = {}
    spelled: dict[str, str] = {}
    words = list(argv)
    while words:
        # split --KEY=VALUE; without "=", the value is the next word
        flag, equals, text = words.pop(0).partition("=")
        if not flag.startswith("--") or flag == "--":
            raise UserError(f"command line: {shorten(flag)} given; possible: --key=value or --key value")
        path = _flag_path(flag)
        if not equals and (not words or words[0].startswith("--")):
            raise UserError(f"command line: {shorten(flag)[1:-1]} needs a value; write {shorten(flag)[1:-1]}=VALUE")
        # refuse a key and its alias together
        top = flag[2:].replace("-", "_").partition(".")[0]
        if spelled.setdefault(path[0], top) != top:
            raise UserError(f"command line: --{spelled[path[0]]} and --{top} are the same key; give one of them")
        # put the value where it belongs
        text = text if equals else words.pop(0)
        try:
            _put(values, path, decode_word(text))
        except ValueError as error:
            raise UserError(
                f"command line: {shorten(flag)[1:-1]}: {shorten(text)} is not a JSON value: {error}"
            ) from None
    return values


def _flag_path(flag: str) -> list[str]:
    """["early_stopping", "patience"] of --early-stopping.patience. UserError for an unknown key."""
    name = flag[2:].replace("-", "_")
    top, _, rest = name.partition(".")
    if top == "model":
        name = f"arch_args.{rest}" if rest else "arch"
    if top != "hyper_search" or not rest:
        return key_path(name, "command line")
    inner, _, last = rest.rpartition(".")
    is_range = last in ("min", "max", "log", "int", "choice") and inner
    path = key_path(inner if is_range else rest, "command line: hyper_search")
    return [top, ".".join(path), *([last] if is_range else [])]


def _put(values: JsonObject, path: list[str], value: Json) -> None:
    """Set values[path[0]][path[1]]... to `value`; a dictionary merges. ValueError where a part has a plain value."""
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ValueError(f"{part} has a value of its own already")
    values |= merge(values, {path[-1]: value})
