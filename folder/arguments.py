"""The command lines of the root scripts: flags of their own, and any parameter by its dotted name. No torch."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from folder.older_templates import explain_older_command
from params import locate_overrides, parse_overrides
from utils import JsonObject, UserError


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
        if self.prog == "train.py" and (older := explain_older_command(argv)):
            raise UserError(older)
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
        try:
            overrides = parse_overrides(others)
        except UserError as error:
            flags = [word.split("=")[0] for word in others if f"unknown key {word.split('=')[0]};" in str(error)]
            near = difflib.get_close_matches(flags[0], self._option_string_actions, 1, 0.8) if flags else []
            if not near:
                raise
            raise UserError(f"{self.prog}: unknown flag {flags[0]}; did you mean '{near[0]}'?") from None
        return self.parse_args(own), overrides


def experiment_path(flags: argparse.Namespace) -> str:
    """The experiment folder of a command line: --model_dir, or the first word. UserError when there is neither."""
    path = flags.model_dir or flags.folder
    if not path:
        raise UserError("which experiment? Give --model_dir EXPERIMENT, a folder with a params.json")
    return path


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
    add("--until", type=int, metavar="E", help="pause after epoch E; the schedule stays that of the whole run")
    add("--restart", action="store_true", help="start over; the old attempt moves to attempts/")
    add("--resume", action="store_true", help="fail when there is nothing to resume")
    add("--accept", action="append", choices=["params", "data", "code", "machine"], help="continue though this changed")
    add("--engine", choices=["local", "slurm"], default="local", help="slurm: train in a Slurm job")
    add("--code", choices=["folder", "tree"], default="tree", help="folder: run the frozen copy in record/code")
    add("--trust", action="store_true", help="run the code that this folder brings, though it is not sealed as yours")
    only = parser.add_mutually_exclusive_group().add_argument
    only("--verify", action="store_true", help="repeat the training with the frozen code and compare the bytes")
    only("--find_lr", action="store_true", help="train 100 steps at rising learning rates, suggest some, and stop")
    only("--doctor", action="store_true", help="say what is unusual about data, net, schedule and rate, and stop")
    only("--overfit", type=int, metavar="N", help="learn N training images by heart, say what blocks it, and stop")
    only("--prepare", action="store_true", help="check everything, fetch weights, build the cache of images, and stop")
    add("--scratch_dir", type=Path, metavar="DIR", help="folder for checkpoints and events, linked from the experiment")
    add("--cache_dir", type=Path, metavar="DIR", help="folder for decoded images (default: .cache beside the data)")
    add("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    parser.epilog = "Any parameter can be changed by name: --learning_rate=0.1 --early_stopping.patience=3 --arch=lenet"
    return parser


@dataclass(frozen=True)
class Request:
    """What the command line of train.py asks for; train_parser explains each flag."""

    data_dir: str | None = None
    base: str | None = None
    restore_file: str | None = None
    extend: float | None = None
    until: int | None = None
    restart: bool = False
    resume: bool = False
    accept: Sequence[str] | None = None
    code: str = "tree"
    trust: bool = False
    find_lr: bool = False
    doctor: bool = False
    overfit: int | None = None
    prepare: bool = False
    scratch_dir: Path | None = None
    cache_dir: Path | None = None
    json: bool = False
    overrides: JsonObject = field(
        default_factory=dict
    )  # the parameters changed on the command line; paths are relative to the folder
    argv: Sequence[str] = ()  # all its words, for the commands that messages suggest

    @property
    def trial(self) -> str:
        """The flag that looks at a run and stops, "" to train: --find_lr, --doctor or --overfit."""
        given = {"--find_lr": self.find_lr, "--doctor": self.doctor, "--overfit": self.overfit is not None}
        return next((flag for flag, is_given in given.items() if is_given), "")

    @classmethod
    def of(cls, flags: argparse.Namespace, overrides: JsonObject, argv: Sequence[str]) -> Request:
        """The request of a command line that has been parsed; its other flags are left out."""
        names = {entry.name for entry in fields(cls)}
        known = {name: value for name, value in vars(flags).items() if name in names}
        experiment = Path(flags.model_dir or flags.folder or "")
        return cls(**known, overrides=locate_overrides(overrides, experiment), argv=argv)
