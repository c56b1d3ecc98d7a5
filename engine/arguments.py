"""The command lines of the root scripts: flags of their own, and any parameter by its dotted name. No torch."""

import argparse
from pathlib import Path
from typing import Any

from params import ALIASES, SYNONYMS, Params, deep_merge, suggest
from utils import UserError, parse_jsonc, shorten


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, and whose unknown --flags are parameters."""

    def __init__(self, name: str, doc: str | None):
        super().__init__(
            prog=name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> Any:
        raise UserError(f"{self.prog}: {message}; see python {self.prog} --help")

    def parse(self, argv: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
        """(flags, nested dictionary of the parameters changed)."""
        own, others = [], []
        words = list(argv)
        while words:
            word = words.pop(0)
            if word == "--":
                own += [word, *words]
                break
            if not word.startswith("--") or word.split("=")[0] in self._option_string_actions:
                own.append(word)
                continue
            others.append(word)
            if "=" not in word and words and not words[0].startswith("--"):
                others.append(words.pop(0))
        return self.parse_args(own), parse_overrides(others)


def train_parser(doc: str | None) -> Parser:
    """The flags of train.py."""
    parser = Parser("train.py", doc)
    add = parser.add_argument
    add("folder", nargs="?", help="the experiment folder (the same as --model_dir)")
    add("--model_dir", metavar="M", help="the experiment folder, holding params.json")
    add("--data_dir", metavar="D", help="dataset folder: {train,valid,test}/CLASS/IMAGE; the folder remembers it")
    add("--base", metavar="B", help="start the new folder M from this folder or JSON file")
    add("--restore_file", metavar="W", help="start from weights: best, last, a file or an experiment folder")
    add("--extend", type=float, metavar="N", help="N epochs on top of a finished run's num_epochs")
    add("--restart", action="store_true", help="start over; the old attempt moves to attempts/")
    add("--resume", action="store_true", help="fail when there is nothing to resume")
    add("--accept", action="append", choices=["params", "data", "code", "machine"], help="go on although this changed")
    add("--code", choices=["folder", "tree"], default="tree", help="folder: run the frozen copy in record/code")
    add("--scratch_dir", type=Path, metavar="DIR", help="checkpoints and events go there, linked from the folder")
    add("--cache_dir", type=Path, metavar="DIR", help="decoded images go there (default: .cache beside the data)")
    add("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    parser.epilog = "Any parameter can be changed by name: --learning_rate=0.1 --early_stopping.patience=3 --arch=lenet"
    return parser


# --- parameters by name ----------------------------------------------------------------------------------


def parse_overrides(argv: list[str]) -> dict[str, Any]:
    """["--learning_rate=0.1", "--early-stopping.patience", "3"] -> nested values. UserError on an unknown name."""
    values: dict[str, Any] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            raise UserError(f"command line: {word!r} is no --key=value")
        name, equals, text = word[2:].partition("=")
        if not equals:
            if not words or (words[0].startswith("--")):
                raise UserError(f"command line: --{name} needs a value; {_known(name)}")
            text = words.pop(0)
        _put(values, name.replace("-", "_"), _value(text))
    return values


def _known(name: str) -> str:
    top = name.replace("-", "_").split(".")[0]
    return f"for example --{name}=VALUE" if ALIASES.get(top, top) in Params.model_fields else suggest(top)


def _value(text: str) -> Any:
    try:
        return parse_jsonc(text)
    except ValueError as error:
        if text[:1] in '[{"' or text in ("NaN", "Infinity", "-Infinity"):
            raise UserError(f"command line: {shorten(text)} is no JSON value ({error})") from None
        return text


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set the dotted `name`. --model and --model.X of the older templates mean arch and arch_args.X."""
    top, *rest = name.split(".")
    if top == "model":
        top = "arch_args" if rest else "arch"
    top = ALIASES.get(top, top)
    if top not in Params.model_fields:
        raise UserError(f"command line: unknown key --{name}; {suggest(name if name in SYNONYMS else top)}")
    for depth, part in enumerate([top, *rest[:-1]] if rest else []):
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UserError(f"command line: --{name}: {part!r} was given a value of its own ({depth})")
    last = rest[-1] if rest else top
    values[last] = (
        deep_merge(values[last], value) if isinstance(values.get(last), dict) and isinstance(value, dict) else value
    )
