"""Command lines of older templates, and the same in this kit's words. No torch."""

import re
from collections.abc import Sequence
from itertools import pairwise, takewhile
from pathlib import Path

from include import PARAMS
from params.names import SYNONYMS
from utils import command

ASSIGNMENT = re.compile(r"[A-Za-z_][\w.]*=.*")  # reload=True
BINDING = re.compile(r"([\w.]+)\s*=\s*([^;]+)")  # of gin: training_loop.n_epochs=5


def explain_older_command(argv: Sequence[str]) -> str:
    """What to type instead of an older template's command line; "" when `argv` is none.

    They are DATASET FOLDER [--key=value ...], of the Keras and PyTorch templates, and FOLDER FILE.gin [-b="key=value;
    key=value"], of the gin template.
    """
    bare = next((word for before, word in pairwise(argv) if before[:1] != "-" and ASSIGNMENT.fullmatch(word)), "")
    if bare:
        return f"{bare}: a parameter begins with two dashes: {command(_flag('--' + bare))}"
    leading = list(takewhile(lambda word: not word.startswith("-"), argv))
    if len(leading) != 2:
        return ""
    first, second = leading
    rest = list(argv[2:])
    if second.endswith(".gin"):
        bindings = " ".join(rest).removeprefix("-b=").removeprefix("-b ")
        return (
            f"{second}: gin files are not read; write its values into {Path(first) / PARAMS} "
            f"and type {command('python', 'train.py', '--model_dir', first, *_gin_flags(bindings))}"
            ". To continue a run, repeat its command"
        )
    data = first if Path(first).is_dir() else f"data/{first}"
    base = [] if (Path(second) / PARAMS).exists() else ["--base", "experiments/simple_cnn"]
    words = ["python", "train.py", "--data_dir", data, "--model_dir", second, *base, *map(_flag, rest)]
    return f"{first} {second}: the two folders are named here: {command(*words)}"


def _flag(word: str) -> str:
    """--n_filters=10 -> --arch_args.n_filters=10; a flag that this kit knows by the same name stays."""
    name, equals, value = word.removeprefix("--").partition("=")
    return f"--{SYNONYMS.get(name, name)}{equals}{value}" if word.startswith("--") else word


def _gin_flags(bindings: str) -> list[str]:
    """training_loop.n_epochs=5 -> --num_epochs=5. A reload needs no flag."""
    pairs = [(name.rpartition(".")[2], value.strip()) for name, value in BINDING.findall(bindings)]
    return [_flag(f"--{name}={value}") for name, value in pairs if name != "reload"]
