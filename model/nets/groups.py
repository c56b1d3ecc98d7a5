"""Layer groups: the parts of a net that get learning rates of their own, and that can be frozen at first."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from params import Params
from utils import UserError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
LayerGroups = list[list[nn.Parameter]]  # earliest layers first


class Freezer:
    """Freezes the first layer groups of `net` in the first epochs: `freeze` of params.json.

    Call it with the number of the epoch (from 0), after net.train(): it puts the batch norms of frozen groups back
    into eval mode, so that they keep their statistics. Parameters that the net itself froze stay frozen.
    UserError when nothing would be left to train.
    """

    def __init__(self, net: nn.Module, params: Params):
        self.net = net
        self.freeze = params.freeze
        self.groups = layer_groups(net)
        self.trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
        if self.freeze and self.freeze.groups >= len(self.groups):
            raise UserError(
                f"freeze.groups: {self.freeze.groups} given, but the net has {len(self.groups)} layer groups and one "
                f"must be left to train; possible: 1 to {len(self.groups) - 1}"
            )

    def __call__(self, epoch: int) -> None:
        is_on = self.freeze is not None and epoch < self.freeze.epochs
        self.freeze_groups(self.freeze.groups if self.freeze and is_on else 0)

    def freeze_groups(self, num_groups: int) -> None:
        """The first `num_groups` groups get no gradient, all others do."""
        frozen = {id(parameter) for group in self.groups[:num_groups] for parameter in group}
        for parameter in self.trainable:
            parameter.requires_grad_(id(parameter) not in frozen)
            if id(parameter) in frozen:
                parameter.grad = None
        for module in self.net.modules():
            own = module.parameters(recurse=False)
            if isinstance(module, BATCH_NORMS) and any(id(parameter) in frozen for parameter in own):
                module.eval()


def layer_groups(net: nn.Module) -> LayerGroups:
    """Early body, late body and head, each parameter in one of them; or what the net's own layer_groups() says.

    The head is the top-level module with the last linear or convolutional layer. The body is divided in the middle of
    its blocks: a ResNet's into stem, layer1, layer2 and layer3, layer4.
    """
    own: Callable[[], Iterable[Iterable[nn.Parameter]]] | None = getattr(net, "layer_groups", None)
    if callable(own):
        return _check_groups(net, [list(group) for group in own()])
    # Step into wrappers: the root is the first module with several children.
    root = net
    while len(children := _children(root)) == 1 and _children(children[0]):
        root = children[0]
    if not children:
        return [[], [], list(net.parameters())]
    # The head, and the second half of the other modules.
    layers = [module for module in root.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    head = next((child for child in children if layers and layers[-1] in list(child.modules())), children[-1])
    late = _late_half([child for child in children if child is not head])
    # Sort the parameters into the three, in the net's order.
    head_ids = {id(parameter) for parameter in head.parameters()}
    late_ids = {id(parameter) for module in late for parameter in module.parameters()}
    groups: LayerGroups = [[], [], []]
    for parameter in net.parameters():
        number = 2 if id(parameter) in head_ids else 1 if id(parameter) in late_ids else 0
        groups[number].append(parameter)
    return groups


def _check_groups(net: nn.Module, groups: LayerGroups) -> LayerGroups:
    """`groups`, if they hold each parameter of the net once; else UserError."""
    listed = sorted(id(parameter) for group in groups for parameter in group)
    if listed != sorted(id(parameter) for parameter in net.parameters()):
        raise UserError(f"{type(net).__name__}.layer_groups() must hold every parameter exactly once")
    return groups


def _late_half(units: list[nn.Module]) -> list[nn.Module]:
    """The second half of a body's blocks (modules with children); of its layers, if it has no blocks.

    The largest block is replaced by its children until there are three blocks.
    """
    while len(blocks := [unit for unit in units if _children(unit)]) < 3 and blocks:
        largest = max(blocks, key=_num_parameters)
        place = units.index(largest)
        units = [*units[:place], *_children(largest), *units[place + 1 :]]
    parts = blocks or units
    if len(parts) < 2:
        return []
    first_late = parts[(len(parts) + 1) // 2]
    return units[units.index(first_late) :]


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _children(module: nn.Module) -> list[nn.Module]:
    """Its direct children that hold parameters."""
    return [child for child in module.children() if next(child.parameters(), None) is not None]


def optimizer_groups(net: nn.Module, params: Params) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: one learning rate per layer group, earliest layers first.

    Matrices and filters decay, biases and norm gains (ndim < 2) do not. UserError when the number of rates is wrong.
    """
    layers = layer_groups(net)
    rates = params.learning_rate if isinstance(params.learning_rate, list) else [params.learning_rate] * len(layers)
    if len(rates) != len(layers):
        raise UserError(f"learning_rate: {len(rates)} rates for {len(layers)} layer groups; give one, or {len(layers)}")
    groups: list[dict[str, Any]] = []
    for number, (layer, rate) in enumerate(zip(layers, rates, strict=True)):
        # With lr_schedule the rates are absolute, and a list of rates gives the proportions.
        initial = rate / max(rates) if params.lr_schedule else rate
        group = {"lr": initial, "initial_lr": initial, "layer_group": number}
        groups.append(group | {"params": [p for p in layer if p.ndim >= 2], "weight_decay": params.wd})
        groups.append(group | {"params": [p for p in layer if p.ndim < 2], "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
