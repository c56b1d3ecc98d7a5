"""Weights for a net, by name and shape. They must fit; only the head may be for another number of classes."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from model.nets.recognise import COUNTERS, Constructors, find_head, recognise
from utils import UserError

PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel, of averages of weights, and of torch.compile
# The published DenseNet files are older than today's names: "norm.1" is now "norm1".
DENSENET_NAME = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d+\.)")
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of GoogLeNet and Inception that only their first training needed


@dataclass
class LoadReport:
    """Which tensors of a net were loaded from `source`, by name."""

    source: str
    sha256: str = ""  # of the file
    matched: list[str] = field(default_factory=list)  # loaded
    missing: list[str] = field(default_factory=list)  # in the net alone
    unexpected: list[str] = field(default_factory=list)  # in the file alone
    mismatched: dict[str, str] = field(default_factory=dict)  # in both, with these shapes
    share: float = 1.0  # of the net's numbers that were loaded
    note: str = ""  # what else was done to the net

    @property
    def total(self) -> int:
        return len(self.matched) + len(self.missing) + len(self.mismatched)

    @property
    def is_complete(self) -> bool:
        """Every tensor of the net was loaded, and the file holds no other."""
        return not (self.missing or self.unexpected or self.mismatched)

    def record(self) -> dict[str, str]:
        """What the folder keeps: which weights the run began with."""
        loaded = f"{len(self.matched)} of {self.total} tensors"
        return {"source": self.source, "sha256": self.sha256, "loaded": loaded}

    def __str__(self) -> str:
        share = f" ({min(self.share, 0.999):.1%} of its numbers)" if self.missing or self.mismatched else ""
        parts = [f"{self.source}: {len(self.matched)} of the net's {self.total} tensors loaded{share}"]
        for what, names in (
            ("other shape, not loaded", [f"{name} ({shapes})" for name, shapes in self.mismatched.items()]),
            ("missing from the file", self.missing),
            ("unexpected in the file", self.unexpected),
        ):
            if names:
                parts.append(f"{what}: {list_some(names)}")
        return "; ".join([*parts, *([self.note] if self.note else [])])


def list_some(names: list[str], at_most: int = 4) -> str:
    return ", ".join(names[:at_most]) + (f", ... ({len(names)} in all)" if len(names) > at_most else "")


def clean_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that the bare net gives them: without prefixes of wrappers, in today's spelling."""
    cleaned = {}
    for name, tensor in tensors.items():
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        cleaned[DENSENET_NAME.sub(r"\1\2", name)] = tensor
    return cleaned


def compare_tensors(net: nn.Module, tensors: Mapping[str, Tensor], source: str) -> LoadReport:
    """Which of `tensors`, by clean names, fit `net`. Changes nothing."""
    own = net.state_dict()
    report = LoadReport(source, unexpected=[name for name in tensors if name not in own])
    for name, tensor in own.items():
        if name not in tensors:
            report.missing.append(name)
        elif tensors[name].shape != tensor.shape:
            report.mismatched[name] = f"{tuple(tensors[name].shape)} in the file, {tuple(tensor.shape)} in the net"
        else:
            report.matched.append(name)
    report.share = sum(own[name].numel() for name in report.matched) / sum(map(Tensor.numel, own.values()))
    return report


def load_tensors(net: nn.Module, tensors: Mapping[str, Tensor], source: str) -> LoadReport:
    """Copy every tensor whose name and shape fit into `net`; the rest of the net stays as it is."""
    tensors = clean_names(tensors)
    report = compare_tensors(net, tensors, source)
    own = net.state_dict()
    with torch.no_grad():
        for name in report.matched:
            own[name].copy_(tensors[name])
    return report


@dataclass(frozen=True)
class Fit:
    """How well weights must fit a net."""

    arch: str  # the net's name
    num_classes: int
    is_partial: bool  # whatever fits is welcome
    registry: Constructors  # the kit's nets, to recognise the weights


def load_pretrained(net: nn.Module, tensors: Mapping[str, Tensor], source: str, fit: Fit, file: Path) -> LoadReport:
    """load_tensors for weights, read from `file`, of a net that may have had another head.

    UserError, with the net that the weights seem to be of, when more than the head differs; or, where a partial fit is
    welcome, when nothing fits.
    """
    tensors = clean_names(tensors)
    report = compare_tensors(net, tensors, source)
    misfits = [] if fit.is_partial else list_misfits(net, tensors, report, fit.num_classes)
    if misfits or not report.matched:
        raise UserError(
            f"weights: {source} does not fit {fit.arch}: {len(report.matched)} of the net's {report.total} tensors fit"
            f"{''.join(f', {misfit}' for misfit in misfits)}. {_ways_out(tensors, report, fit)}"
        )
    report = load_tensors(net, tensors, source)
    report.note = _calm_head(net, report)
    with open(file, "rb") as content:
        report.sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return report


@torch.no_grad()
def _calm_head(net: nn.Module, report: LoadReport) -> str:
    """Scale the random weights of a new head that are far larger than torch's own; returns what was done, in words.

    EfficientNets draw them from [-1, 1] / sqrt(classes): with 2 classes and 1280 features the first loss is 20 times
    that of guessing, and the pretrained layers are spoilt before the head has learned.
    """
    modules = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    name = next((name for name in modules if f"{name}." in find_head(net)), None)
    if name is None or f"{name}.weight" not in {*report.missing, *report.mismatched}:
        return ""
    weight = modules[name].weight  # (K, inputs)
    usual = (3 * weight.shape[1]) ** -0.5  # the standard deviation that nn.Linear begins with
    ratio = float(weight.std() / usual)
    if not ratio > 4:
        return ""
    weight.div_(ratio)
    return f"the new head's random weights were {ratio:.0f} times as large as usual: scaled"


def list_misfits(net: nn.Module, tensors: Mapping[str, Tensor], report: LoadReport, num_classes: int) -> list[str]:
    """What differs apart from the head, in a few words each; [] when nothing does."""
    head = find_head(net)
    own = net.state_dict()

    def is_head(name: str) -> bool:
        return name.startswith(head) or name.endswith(COUNTERS)

    def is_second_head(name: str) -> bool:  # the number of outputs alone differs, and is the number of classes
        return own[name].shape[:1] == (num_classes,) and own[name].shape[1:] == tensors[name].shape[1:]

    shapes = report.mismatched.items()
    misfits = {
        "missing": [name for name in report.missing if not is_head(name)],
        "unexpected": [name for name in report.unexpected if not (is_head(name) or name.startswith(AUXILIARY))],
        "of another shape": [f"{name}: {text}" for name, text in shapes if not (is_head(name) or is_second_head(name))],
    }
    shown = {what: f"{', '.join(names[:2])}{', ...' if len(names) > 2 else ''}" for what, names in misfits.items()}
    return [f"{len(names)} {what} ({shown[what]})" for what, names in misfits.items() if names]


def _ways_out(tensors: Mapping[str, Tensor], report: LoadReport, fit: Fit) -> str:
    """What the weights seem to be of, and what can be done."""
    if list(report.mismatched)[:1] == ["conv1.weight"] and tensors["conv1.weight"].shape[2:] == (3, 3):
        return "It has the 3x3 stem for images of up to 64 px: set im_sz to 64 or less"
    if not (report.missing or report.unexpected):
        return f"The names are those of {fit.arch}, the sizes are not: set arch_args and im_sz as they were"
    name = recognise(tensors, fit.arch, fit.registry)
    seems = f'It seems to be of {name}: set "arch": "{name}"' if name else "It is of no net that was recognised"
    is_of_use = report.matched and not fit.is_partial
    way = f"give weights of {fit.arch}"
    return f'{seems}, {way}, or take what fits: "pretrain_partial": 1' if is_of_use else f"{seems}, or {way}"
