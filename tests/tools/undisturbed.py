"""The images, the changed copy of the kit and the undisturbed runs that results are compared with."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forks
from holding import TEST, Holding, read, sha
from kit import ROOT, copy_kit

PARAMS: dict[str, Any] = {
    "arch": "simple_cnn",
    "arch_args": {"n_filters": 16},
    "batch_size": 16,
    "num_epochs": 2,
    "observers": [],
    "threads": 1,
    "precision": "fp32",
    "checkpoint_minutes": 0.0001,
    "save_summary_steps": 1,
    "ps": 0.2,
}
CHANGED_CODE = ("model/net.py", "self.head(features.mean(dim=(2, 3)))", "self.head(features.mean(dim=(2, 3)) * 0.5)")


@dataclass(frozen=True)
class Result:
    """What an undisturbed run gives."""

    files: dict[str, str]
    rows: list[dict[str, Any]]
    tests: dict[int, str]  # of the data's variant -> digest of its test metrics
    predictions: str


class Shared:
    """What all sequences share: images, a changed copy of the kit, and the table of undisturbed runs."""

    def __init__(self, root: Path):
        self.root = root
        os.environ |= {"XDG_STATE_HOME": str(root / "state"), "XDG_CACHE_HOME": str(root / "cache")}
        self.trees = [ROOT, copy_kit(root / "tree")]
        file, text, other = CHANGED_CODE
        content = (self.trees[1] / file).read_text()
        assert content.count(text) == 1, "the code that is to be changed has moved"
        (self.trees[1] / file).write_text(content.replace(text, other))
        self.data = [make_data(root / f"data_{variant}", variant) for variant in range(2)]
        self.table: dict[str, Result] = {}
        self.folders: dict[str, Path] = {}
        self.base, self.fingerprints = self._learn()

    def _learn(self) -> tuple[dict[str, Any], list[Any]]:
        """The resolved parameters of a plain run, and what it records of each variant of the data."""
        folders = [self._train({}, [2], 0, variant) for variant in range(2)]
        resolved = read(folders[0] / "record/resolved.json")
        return resolved, [read(folder / "record/meta.json")["data"] for folder in folders]

    def _train(self, changes: dict[str, Any], chain: list[float], code: int, data: int, isa: str = "") -> Path:
        key = json.dumps([changes, chain, code, data, isa], sort_keys=True)
        if key in self.folders:
            return self.folders[key]
        folder = Path(tempfile.mkdtemp(prefix="reference_", dir=self.root))
        (folder / "params.json").write_text(json.dumps(PARAMS | changes | {"num_epochs": chain[0]}))
        command = ["--data_dir", self.data[data], "--model_dir", folder]
        environ = {"ONEDNN_MAX_CPU_ISA": isa} if isa else {}
        for length in chain:
            more = ["--extend", length - chain[0]] if length != chain[0] else []
            done = forks.run(self.trees[code] / "train.py", [*command, *more], environ=environ)
            assert done.code == 0, f"an undisturbed run fails: {done.output}"
        self.folders[key] = folder
        return folder

    def result(self, changes: dict[str, Any], chain: list[float], code: int, data: int, isa: str = "") -> Result:
        key = json.dumps([changes, chain, code, data, isa], sort_keys=True)
        if key not in self.table:
            folder = self._train(changes, chain, code, data, isa)
            holding = Holding.of(folder)
            self.table[key] = Result(holding.files, holding.rows, {}, "")
        return self.table[key]

    def test(self, changes: dict[str, Any], chain: list[float], code: int, data: int, variant: int) -> tuple[str, str]:
        """Digests of (test metrics, predictions) of an undisturbed run, tested on a variant of the data."""
        result = self.result(changes, chain, code, data)
        if variant not in result.tests:
            folder = self._train(changes, chain, code, data)
            script = self.trees[code] / "evaluate.py"
            done = forks.run(script, ["--model_dir", folder, "--data_dir", self.data[variant]])
            assert done.code == 0, done.output
            result.tests[variant] = sha(folder / TEST)
        return result.tests[variant], result.predictions


def make_data(folder: Path, variant: int) -> Path:
    """64 digits, 16 px; in variant 1, two of its files have swapped their content in train and in test."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    images, labels = load_digits(n_class=2, return_X_y=True)
    start = {0: 0, 1: 0}
    for split, number in (("train", 18), ("valid", 8), ("test", 6)):
        for label in range(2):
            target = folder / split / str(label)
            target.mkdir(parents=True)
            places = np.flatnonzero(labels == label)[start[label] : start[label] + number]
            start[label] += number
            for place in places:
                image = (
                    Image.fromarray((images[place].reshape(8, 8) * 15).astype("uint8")).resize((16, 16)).convert("RGB")
                )
                image.save(target / f"{place:04d}.bmp")
    if variant:
        for one, two in swapped_pairs(folder):
            first, second = one.read_bytes(), two.read_bytes()
            one.write_bytes(second)
            two.write_bytes(first)
    return folder


def swapped_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """In train and test: the first files of the two classes."""
    return [tuple(sorted((folder / split / str(k)).iterdir())[0] for k in (0, 1)) for split in ("train", "test")]  # pyright: ignore[reportReturnType]
