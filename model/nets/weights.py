"""Weights from elsewhere: published ones, or a local file; loaded by name and shape."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from utils import UserError, read_tensors

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
# The published DenseNet files are older than today's names: "norm.1" is now "norm1".
DENSENET_NAME = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d+\.)")


@dataclass
class LoadReport:
    """Which tensors of a net were loaded from `source`, by name."""

    source: str
    matched: list[str] = field(default_factory=list)  # loaded
    missing: list[str] = field(default_factory=list)  # in the net alone
    unexpected: list[str] = field(default_factory=list)  # in the file alone
    mismatched: list[str] = field(default_factory=list)  # in both, with different shapes

    @property
    def is_complete(self) -> bool:
        """Every tensor of the net was loaded, and the file holds no other."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.mismatched)
        parts = [f"{self.source}: {len(self.matched)} of the net's {total} tensors loaded"]
        for what, names in (
            ("other shape, not loaded", self.mismatched),
            ("missing from the file", self.missing),
            ("unexpected in the file", self.unexpected),
        ):
            if names:
                shown = ", ".join(names[:4]) + (f", ... ({len(names)} in all)" if len(names) > 4 else "")
                parts.append(f"{what}: {shown}")
        return "; ".join(parts)


def clean_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that the bare net gives them: without prefixes of wrappers, in today's spelling."""
    cleaned = {}
    for name, tensor in tensors.items():
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        cleaned[DENSENET_NAME.sub(r"\1\2", name)] = tensor
    return cleaned


def load_tensors(net: nn.Module, tensors: Mapping[str, Tensor], source: str) -> LoadReport:
    """Copy every tensor whose name and shape fit into `net`. UserError when none does."""
    tensors = clean_names(tensors)
    own = net.state_dict()
    report = LoadReport(source, unexpected=[name for name in tensors if name not in own])
    for name, tensor in own.items():
        if name not in tensors:
            report.missing.append(name)
        elif tensors[name].shape != tensor.shape:
            shapes = f"{tuple(tensors[name].shape)} in the file, {tuple(tensor.shape)} in the net"
            report.mismatched.append(f"{name} ({shapes})")
        else:
            report.matched.append(name)
    if not report.matched:
        raise UserError(
            f"{source}: none of its {len(tensors)} tensors fits this net (it has {_some(tensors)}; "
            f"the net has {_some(own)}); is it of another arch?"
        )
    with torch.no_grad():
        for name in report.matched:
            own[name].copy_(tensors[name])
    return report


def load_weights(net: nn.Module, path: Path | str) -> LoadReport:
    """Load a `.safetensors` or PyTorch file (weights only) into `net`. str(report) is one line for the user.

    A tensor of another shape, such as a head for another number of classes, is left as initialised.
    UserError when the file cannot be read, or none of its tensors fits.
    """
    return load_tensors(net, read_tensors(path), str(path))


def fetch_published_weights(arch: str) -> tuple[dict[str, Tensor], str]:
    """torchvision's default weights for `arch`, and their name. Downloaded once, into torch's cache."""
    weights = _default_weights(arch)
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
    try:
        tensors = weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
    except Exception as error:
        raise UserError(
            f"pretrain: the published weights of {arch} could not be read ({describe_error(error)}); with no "
            f'network, put {weights.url} at {file}, or give a local file: "pretrain": "path/to/weights.pth"'
        ) from None
    return tensors, str(weights)


def published_size(arch: str) -> int:
    """The smallest image size in px that torchvision's default weights of `arch` take."""
    return _default_weights(arch).meta["min_size"][0]


def _default_weights(arch: str) -> "WeightsEnum":
    from torchvision.models import get_model_weights  # torchvision takes two seconds to import

    return get_model_weights(arch)["DEFAULT"]


def _some(names: Mapping[str, Tensor]) -> str:
    return ", ".join(list(names)[:2]) + (", ..." if len(names) > 2 else "")


def describe_error(error: Exception) -> str:
    """Type and first line of an exception."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__
