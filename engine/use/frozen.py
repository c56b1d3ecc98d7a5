"""Ask the frozen copy in a folder for the outputs of its net, where the code in the tree is no longer what trained it.

The frozen copy runs as a process of its own. Later versions keep these two commands:

    evaluate.py --model_dir M --restore_file W --split S --data_dir D --logits FILE.npz [--cache_dir C] [--KEY=VALUE]

writes FILE.npz and nothing else: no table, no record of the look, which the caller writes. It holds arrays, images in
the order of their files: logits (N, K) float64, labels (N,), positions (N,) in paths; worst (M,) rows of the images
with the largest losses, and their pixels (M, H, W, 3) uint8; and info, JSON text: format (1), classes, paths,
num_images, fingerprint (of the data), description (for people).

    predict.py --model_dir M --restore_file W --top K --json [--KEY=VALUE] -- IMAGE|FOLDER ...

prints {"weights", "failed", "rows": [{"path", "label_1", "prob_1", ..., "error"}, ...]}. 0.1.0 knows this one alone; of
the first it has the form that writes its own tables, which runs in place of ours. A frozen export.py always does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from engine.use.evaluation import Computed, SplitOutput
from folder.provenance import MARKER
from include import CODE, EXIT_BUG
from utils import JsonObject, UserError

FORMAT = 1
TENSORS = ("logits", "labels", "positions", "worst")
THIS_MODULE = "engine/use/frozen.py"  # a copy that has it knows --logits


def write_computed(path: Path, computed: Computed) -> None:
    """Write what the caller of `evaluate.py --logits` reads."""
    outputs = computed.outputs
    info = {
        "format": FORMAT,
        "classes": list(computed.classes),
        "paths": [computed.paths[position] for position in range(len(computed.paths))],
        "num_images": computed.num_images,
        "fingerprint": computed.fingerprint,
        "description": computed.description,
    }
    arrays = {name: getattr(outputs, name).numpy() for name in TENSORS}
    with open(path, "wb") as file:
        np.savez(file, **arrays, pixels=outputs.pixels, info=np.array(json.dumps(info)))


def read_computed(path: Path) -> Computed:
    """What a frozen copy wrote. UserError for another format."""
    with np.load(path) as arrays:
        info = json.loads(str(arrays["info"]))
        if (number := info.pop("format")) != FORMAT:
            raise UserError(f"the frozen copy writes format {number}, this version reads {FORMAT}; give --code tree")
        tensors = {name: torch.from_numpy(arrays[name]) for name in TENSORS}
        return Computed(SplitOutput(**tensors, pixels=arrays["pixels"]), **info)


def knows_logits(folder: Path) -> bool:
    """True when the frozen copy understands `evaluate.py --logits`: copies of 0.1.0 do not."""
    return (folder / CODE / THIS_MODULE).is_file()


def compute_logits(folder: Path, words: Sequence[str], overrides: JsonObject) -> Computed:
    """`evaluate.py words` of the frozen copy. UserError, with its exit code, when it fails. Metrics are the tree's."""
    overrides = {key: value for key, value in overrides.items() if key != "metrics"}
    with tempfile.TemporaryDirectory(prefix="logits-") as name:
        file = Path(name) / "logits.npz"
        call_frozen(folder, "evaluate.py", [*words, "--logits", str(file), *as_flags(overrides)])
        return read_computed(file)


def predict_rows(folder: Path, words: Sequence[str], images: Sequence[str], overrides: JsonObject) -> JsonObject:
    """`predict.py words --json images` of the frozen copy: what it prints. UserError when it fails."""
    printed = call_frozen(folder, "predict.py", [*words, "--json", *as_flags(overrides), "--", *images])
    return json.loads(printed)


def as_flags(overrides: JsonObject) -> list[str]:
    """The words of a command line that mean `overrides`."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]


def call_frozen(folder: Path, script: str, words: Sequence[str]) -> str:
    """Run a script of the frozen copy, which has been checked, and return what it prints. UserError when it fails."""
    words = frozen_command(folder, script, words)
    environ = os.environ | {MARKER: "1"}
    done = subprocess.run(words, env=environ, capture_output=True, encoding="utf-8", errors="surrogateescape")
    has_answer = done.stdout.startswith("{")  # predict.py exits with 2, too, when no image could be read
    if done.returncode and not has_answer:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        code = done.returncode if done.returncode > 0 else EXIT_BUG
        raise UserError(f"{folder / CODE / script}: {lines[-1].removeprefix('error: ')}", code)
    return done.stdout


def run_instead(folder: Path, script: str, argv: Sequence[str]) -> int:
    """Run a script of an older frozen copy in place of ours, on the same terminal. Returns its exit code."""
    # older versions know neither --code nor --trust
    words = list(argv)
    if "--code" in words:
        del words[words.index("--code") : words.index("--code") + 2]
    words = [word for word in words if word != "--trust" and not word.startswith("--code=")]
    return subprocess.run(frozen_command(folder, script, words), env=os.environ | {MARKER: "1"}).returncode


def frozen_command(folder: Path, script: str, words: Sequence[str]) -> list[str]:
    """The command that runs a script of the frozen copy. UserError when there is no such script."""
    path = folder / CODE / script
    if not path.is_file():
        raise UserError(f"{folder} holds no {CODE}/{script}: --code tree computes with the code as it is now")
    return [sys.executable, str(path), *words]
