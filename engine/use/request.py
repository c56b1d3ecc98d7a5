"""The command line of evaluate.py, and what it asks for. No torch."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from folder.arguments import Parser
from folder.folder import Folder
from folder.locate import find_present_data
from folder.trust import Consent
from utils import JsonObject


def evaluate_parser(doc: str | None) -> Parser:
    """The flags of evaluate.py."""
    parser = Parser("evaluate.py", doc)
    add = parser.add_argument
    add("folder", nargs="?", help="the experiment folder (the same as --model_dir)")
    add("--model_dir", metavar="M", help="the experiment folder, trained")
    add("--data_dir", metavar="D", help="dataset folder (default: the one it was trained with)")
    add("--restore_file", metavar="W", default="best", help="weights: best (default), last or a file")
    add("--split", default="test", help="test (default), valid or train (without augmentation)")
    add("--out", type=Path, metavar="DIR", help="write there instead of into the experiment folder")
    add("--cache_dir", type=Path, metavar="DIR", help="for decoded images (default: .cache beside the data)")
    add("--code", choices=["folder", "tree"], help="whose code computes (default: the folder's, if the tree's changed)")
    add("--trust", action="store_true", help="run the code that the folder brings, though it is not sealed as yours")
    add("--logits", type=Path, metavar="FILE", help=argparse.SUPPRESS)  # asked of a frozen copy: engine/use/frozen.py
    add("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    parser.epilog = (
        'Parameters that do not change the net can be given: --bs_test=64 --device=cpu --metrics=\'["f1", "auc"]\''
    )
    return parser


@dataclass(frozen=True)
class EvaluationRequest:
    """The request of the command line."""

    split: str
    restore_file: str  # weights: best, last or a file
    data_dir: str | None
    out: Path | None  # where to write, when not into the experiment folder
    cache_dir: Path | None
    code: str  # whose code computes: tree or folder
    consent: Consent  # to code that is not sealed as this user's
    overrides: JsonObject  # the parameters of the command line

    def words(self, folder: Folder, split: str) -> list[str]:
        """The same request to a frozen copy, apart from parameters."""
        data_dir = find_present_data(folder, self.data_dir)
        words = ["--model_dir", str(folder.path), "--data_dir", str(data_dir)]
        words += ["--split", split, "--restore_file", self.restore_file]
        return words + (["--cache_dir", str(self.cache_dir)] if self.cache_dir else [])
