"""Command lines and folders of older templates, and the same in this kit's words. No torch."""

import datetime
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from pathlib import Path

import params
from folder.history import training_column, validation_column
from include import CHECKPOINTS, META, METRICS_BEST, METRICS_LAST, PARAMS, RESOLVED, ROOT, STATUS, WEIGHTS
from params import HABITS, SYNONYMS
from utils import JsonObject, UserError, command

# --- command lines --------------------------------------------------------------------------------------

ASSIGNMENT = re.compile(r"[A-Za-z_][\w.]*=.*")  # reload=True
OVERFIT = "how many images? --overfit 64 learns them by heart, says what blocks it, and stops"
SIMPLE_CNN = "experiments/simple_cnn"
BINDING = re.compile(r"([\w.]+)\s*=\s*([^;]+)")  # of gin: training_loop.n_epochs=5


def explain_older_command(argv: Sequence[str]) -> str:
    """What to type instead of an older template's command line; "" when `argv` is none.

    They are DATASET FOLDER [--key=value ...], of the Keras and PyTorch templates, and FOLDER FILE.gin [-b="key=value;
    key=value"], of the gin template.
    """
    bare = next((word for before, word in pairwise(argv) if before[:1] != "-" and ASSIGNMENT.fullmatch(word)), "")
    if bare:
        habit = HABITS.get(bare.partition("=")[0].rpartition(".")[2])
        return f"{bare}: {habit or 'a parameter begins with two dashes: ' + command(_flag('--' + bare))}"
    without_number = [word for word, after in pairwise([*argv, "-"]) if word == "--overfit" and after[:1] == "-"]
    argv = [word for word in argv if word not in without_number]
    leading = list(takewhile(lambda word: not word.startswith("-"), argv))
    if len(leading) != 2:
        return f"--overfit: {OVERFIT}" if without_number else ""
    first, second = leading
    rest = list(argv[2:])
    base = [] if (Path(first if second.endswith(".gin") else second) / PARAMS).exists() else ["--base", SIMPLE_CNN]
    if second.endswith(".gin"):
        bindings = " ".join(rest).removeprefix("-b=").removeprefix("-b ")
        words = ["python", "train.py", "--data_dir", "DATA", "--model_dir", first, *base, *_gin_flags(bindings)]
        return (
            f"{second}: gin files are not read; give its values as parameters, or write them into "
            f"{Path(first) / PARAMS}: {command(*words)}   To continue a run, repeat its command"
        )
    data = first if Path(first).is_dir() else f"data/{first}"
    habits = dict.fromkeys(without_number, OVERFIT)
    habits |= {word: HABITS[name] for word in rest if (name := word.lstrip("-").partition("=")[0]) in HABITS}
    flags = [_flag(word) for word in rest if word not in habits]
    words = ["python", "train.py", "--data_dir", data, "--model_dir", second, *base, *flags]
    asides = [f"   {word}: {habit}" for word, habit in habits.items()]
    return f"{first} {second}: data and experiment are named here: {command(*words)}{''.join(asides)}"


def _flag(word: str) -> str:
    """--n_filters=10 -> --arch_args.n_filters=10; a flag that this kit knows by the same name stays."""
    name, equals, value = word.removeprefix("--").partition("=")
    return f"--{SYNONYMS.get(name, name)}{equals}{value}" if word.startswith("--") else word


def _gin_flags(bindings: str) -> list[str]:
    """training_loop.n_epochs=5 -> --num_epochs=5. A reload needs no flag."""
    pairs = [(name.rpartition(".")[2], value.strip()) for name, value in BINDING.findall(bindings)]
    return [_flag(f"--{name}={value}") for name, value in pairs if name != "reload"]


# --- folders of the CS230 template and its descendants --------------------------------------------------

STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}):\w+: (.*)")  # 2019-12-17 10:02:11,123:INFO: TEXT
START = re.compile(r"Starting training for (\d+) epoch")
EPOCH = re.compile(r"Epoch (\d+)/(\d+)")
METRICS = re.compile(r"- (Train|Eval) metrics ?: (.+)")  # accuracy: 0.969 ; loss: 0.234
VALUE = re.compile(r"([\w.-]+): *(\S+)")
FOUND_BEST, EARLY_STOP = "- Found new best", "- Early Stopping"
OWN_FILES = (RESOLVED, META, STATUS, WEIGHTS, CHECKPOINTS)  # what every run of this kit writes
SPLIT_NAMES = {"train": "train", "valid": "val", "val": "val"}  # of a descendant's history.json -> of a history here


@dataclass
class OlderRun:
    """What the files of such a folder say about its last training."""

    history: list[JsonObject] = field(default_factory=list)  # one row per finished epoch, as in a history of this kit
    best_epoch: int | None = None
    num_epochs: int = 0  # that were asked for; 0: not known
    is_stopped: bool = False  # by early stopping

    @property
    def is_finished(self) -> bool:
        """False if the log ends before the last epoch that was asked for."""
        return self.is_stopped or len(self.history) >= self.num_epochs


def is_of_another_kit(folder: Path | str) -> bool:
    """True for a folder with metrics and without records or weights of this kit, as the CS230 template leaves it."""
    path = Path(folder)
    has_metrics = any((path / name).is_file() for name in (METRICS_BEST, METRICS_LAST))
    # record/ itself says nothing: a page brings its script there.
    return has_metrics and not any(os.path.lexists(path / name) for name in OWN_FILES)


def read_older_log(text: str) -> OlderRun:
    """The last training in a train.log that finished an epoch; a log grows with each start of train.py."""
    runs = [OlderRun()]
    row: JsonObject = {}
    started = finished = 0.0
    for line in text.splitlines():
        stamp = STAMP.fullmatch(line)
        if stamp:
            finished = datetime.datetime.fromisoformat(stamp[1]).timestamp() + int(stamp[2]) / 1000
        words = stamp[3] if stamp else line
        run = runs[-1]
        if start := START.match(words):
            runs.append(OlderRun(num_epochs=int(start[1])))
            row = {}
        elif epoch := EPOCH.fullmatch(words):
            row = {"epoch": int(epoch[1])}
            run.num_epochs = int(epoch[2])
            started = finished
        elif (metrics := METRICS.fullmatch(words)) and row:
            column = training_column if metrics[1] == "Train" else validation_column
            row |= {column(name): _to_number(value) for name, value in VALUE.findall(metrics[2])}
            if metrics[1] == "Eval":
                run.history.append(row | {"seconds": round(finished - started, 3)})
                row = {}
        elif words.startswith(FOUND_BEST) and run.history:
            run.best_epoch = run.history[-1]["epoch"]
        elif words.startswith(EARLY_STOP):
            run.is_stopped = True
    return next((run for run in reversed(runs) if run.history), runs[-1])


def add_older_history(run: OlderRun, value: object) -> None:
    """Take the values of a history.json {"train": {metric: [...]}, "valid": {...}}, more exact than those of a log."""
    splits = value if isinstance(value, dict) else {}
    columns = {
        f"{SPLIT_NAMES[split]}_{metric}": values
        for split, metrics in splits.items()
        if split in SPLIT_NAMES and isinstance(metrics, dict)
        for metric, values in metrics.items()
        if isinstance(values, list)
    }
    num_epochs = max(map(len, columns.values()), default=0)
    logged = run.history if len(run.history) == num_epochs else []
    if num_epochs:
        run.history = [logged[i] if logged else {"epoch": i + 1} for i in range(num_epochs)]
    for name, values in columns.items():
        for row, value in zip(run.history, values, strict=False):
            row[name] = _to_number(value)


def _to_number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    try:
        number = float(value)  # pyright: ignore[reportArgumentType] (anything that float refuses is None)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def explain_older_folder(folder: Path, data_dir: Path | str = "DATA") -> str:
    """Whose results `folder` holds, and the command that trains the same in a folder of this kit."""
    return (
        f"{folder} was trained by another kit (it has no {RESOLVED}): tables and plots read its metrics, but only the "
        f"code that wrote its weights can use them. To train the same here: {command(*older_words(folder, data_dir))}"
    )


def has_known_params(folder: Path) -> bool:
    """True if the params.json of `folder` means something here as it is."""
    try:
        params.load(folder)
    except UserError:
        return False
    return True


def older_words(folder: Path, data_dir: Path | str) -> list[str]:
    """The command that trains what the params.json of an older folder describes, in a new folder."""
    start = ["python", "train.py", "--data_dir", str(data_dir), "--model_dir", "NEW_FOLDER", "--base"]
    if has_known_params(folder):
        return [*start, str(folder)]
    try:
        given = params.read(folder / PARAMS)
    except UserError:
        given = {}
    # The CS230 template has one net, one optimizer and one schedule: those of experiments/base_model.
    is_cs230 = "arch" not in given and "model" not in given
    shipped = ROOT / "experiments" / ("base_model" if is_cs230 else "simple_cnn")
    names = SYNONYMS | ({"num_channels": "arch_args.num_channels"} if is_cs230 else {})
    values = {names.get(key, key): value for key, value in given.items() if key != "cuda"}
    words = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    return [*start, str(shipped.relative_to(ROOT) if Path.cwd() == ROOT else shipped), *words]
