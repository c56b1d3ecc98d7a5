"""The number of parameters of every net by name, as kept in net_parameters.json.

python tests/tools/golden.py    # writes the file anew; read the difference before committing it
"""

import contextlib
import sys
import unittest.mock
from collections.abc import Iterator

from kit import ROOT
from torch import nn

sys.path.insert(0, str(ROOT))

import params
from model.net import NETS, make_net
from model.nets.backbones import list_torchvision_nets
from utils import write_json

GOLDEN = ROOT / "tests/unit/golden/net_parameters.json"
SIZES = {"sign_net": 64, "vit_h_14": 518}  # px; the others at 224, where ResNets have their published stem


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Parameters are made without memory: the largest net has 645 million."""
    register = nn.Module.register_parameter

    def register_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        on_meta = None if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, on_meta)

    with unittest.mock.patch.object(nn.Module, "register_parameter", register_meta):
        yield


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def parameter_counts() -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    with on_meta():
        for name in [*NETS, *list_torchvision_nets()]:
            given = params.from_resolved({"arch": name, "im_sz": SIZES.get(name, 224)}, ROOT)
            counts[name] = {str(k): count(make_net(given, k)[0]) for k in (10, 1000)}
    return counts


if __name__ == "__main__":
    write_json(GOLDEN, parameter_counts())
