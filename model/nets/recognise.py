"""Which net do weights belong to? Read from the names and shapes of their tensors; nothing is downloaded."""

import difflib
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

SECONDS = 4.0  # that may be spent on building nets of the libraries to compare with
COUNTERS = ("num_batches_tracked", "n_averaged")  # no weights: older files lack the first, averages bring the second
# A tensor that tells a family of torchvision's nets -> how the names of its members begin.
FAMILIES = {
    "layer1.0.conv1.weight": ("resnet", "resnext", "wide_resnet"),
    "features.denseblock1.denselayer1.conv1.weight": ("densenet",),
    "conv_proj.weight": ("vit",),
    "features.0.0.weight": ("efficientnet", "mobilenet", "convnext", "swin"),
    "features.0.weight": ("vgg", "alexnet"),
    "layers.0.weight": ("mnasnet",),
}
Constructors = Mapping[str, Callable[..., nn.Module]]


def find_head(net: nn.Module) -> tuple[str, ...]:
    """How the names of the last linear or convolutional layer's tensors begin: ("fc.",); () in a net without one."""
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return (f"{names[-1]}." if names[-1] else "",) if names else ()


def recognise(tensors: Mapping[str, Tensor], arch: str, registry: Constructors) -> str:
    """The name of the net that the weights seem to be of, "" for none: one of `registry` or of the libraries.

    `arch`: the net that they did not fit; nets with similar names are tried first.
    """
    spent = 0.0
    for name, build in _candidates(tensors, arch, registry):
        begun = time.perf_counter()
        if name != arch and _has_body(build, tensors):
            return name
        spent += time.perf_counter() - begun
        if spent > SECONDS:
            break
    return ""


def _has_body(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> bool:
    """True if the tensors are those of the net that `build` makes, by name and shape; its head aside."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = build()
    except Exception:  # this net cannot be built without memory for its weights
        return False
    skipped = (*find_head(net), "conv1.weight")  # a ResNet for small images has another stem
    shapes = [
        {name: t.shape for name, t in table.items() if not (name.startswith(skipped) or name.endswith(COUNTERS))}
        for table in (net.state_dict(), tensors)
    ]
    return shapes[0] == shapes[1]


def _candidates(
    tensors: Mapping[str, Tensor], arch: str, registry: Constructors
) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """(name, constructor) of nets, the likeliest first."""
    for name, constructor in registry.items():
        yield name, lambda constructor=constructor: constructor(num_classes=2)
    # timm's nets of the same family; all of them would take a minute.
    if arch.startswith("timm/"):
        import timm

        base = arch.removeprefix("timm/").split(".")[0]
        family = re.match(r"[a-z]+(_[a-z]+)*", base)
        for name in _nearest_first(base, timm.list_models(f"{family.group() if family else base}*")):
            yield f"timm/{name}", lambda name=name: timm.create_model(name)
    # torchvision's.
    from torchvision import models

    starts = tuple(start for sign, names in FAMILIES.items() if sign in tensors for start in names)
    names = _nearest_first(arch, models.list_models(module=models))
    for name in sorted(names, key=lambda name: not name.startswith(starts)):
        yield name, lambda name=name: models.get_model(name, weights=None)


def _nearest_first(name: str, names: list[str]) -> list[str]:
    return sorted(names, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
