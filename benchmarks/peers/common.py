"""What every peer shares: arguments, the nets, the pixels' statistics, and the stamps it leaves.

No peer imports anything of the kit. Each is run as `python -m peers.NAME` in the peers' environment, in a folder of
its own, in which its library may write what it likes.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, VALID_BATCH = 128, 256
SGD = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}  # the rate stays what it is


def arguments(doc: str | None) -> argparse.Namespace:
    """The command line of a peer."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--data_dir", type=Path, required=True, help="holds train/CLASS/FILE and valid/CLASS/FILE")
    parser.add_argument("--net", choices=["simple_cnn", "resnet18"], default="simple_cnn")
    parser.add_argument("--num_epochs", type=int, default=2)
    parser.add_argument("--precision", choices=["default", "fp32"], default="default")
    parser.add_argument("--stamps", type=Path, required=True, help="file that Stamps are appended to")
    args = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    return args


class Stamps:
    """When the first optimizer step was done, and each epoch: training, validation and what the library does then.

    Times are of the clock that all processes of a machine share. Works for whatever steps a torch.optim.Optimizer.
    """

    def __init__(self, path: Path):
        self.path = path
        self.hook = register_optimizer_step_post_hook(self._first_step)

    def _stamp(self, event: str, **values: float | int) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"event": event, "at": time.monotonic()} | values) + "\n")

    def _first_step(self, *_: object) -> None:
        self.hook.remove()
        self._stamp("first_step")

    def epoch(self, **values: float) -> None:
        """An epoch is over. `values`: val_accuracy and what else is known."""
        self._stamp("epoch", **{name: float(value) for name, value in values.items()})

    def net(self, net: nn.Module) -> None:
        """Which net was trained: it must be the same for all."""
        self._stamp("net", parameters=sum(p.numel() for p in net.parameters()), threads=torch.get_num_threads())


def num_workers() -> int:
    """One loader process per core, what users are told to begin with."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- nets -------------------------------------------------------------------------------------------


def conv_bn_relu(num_in: int, num_out: int) -> nn.Sequential:
    conv = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(num_out), nn.ReLU(inplace=True))


class SimpleCNN(nn.Module):
    """The kit's simple_cnn: three blocks of two 3x3 convolutions and a max pool, 32, 64, 128 filters; linear."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.blocks = nn.Sequential()
        for num_in, num_out in ((3, 32), (32, 64), (64, 128)):
            self.blocks.append(
                nn.Sequential(conv_bn_relu(num_in, num_out), conv_bn_relu(num_out, num_out), nn.MaxPool2d(2))
            )
        self.head = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(dim=(2, 3)))


def make_net(name: str, num_classes: int) -> nn.Module:
    """simple_cnn, or torchvision's ResNet-18 with the stem for 32 px: 3x3, stride 1, no max pool."""
    if name == "simple_cnn":
        return SimpleCNN(num_classes)
    from torchvision.models import resnet18

    net = resnet18(num_classes=num_classes)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net
