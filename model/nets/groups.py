"""Layer groups: the parts of a net that get learning rates of their own, and that can be frozen at first."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from model.nets.recognise import find_head
from params import Params
from utils import UserError

LayerGroups = list[list[nn.Parameter]]  # earliest layers first


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


def layer_depths(net: nn.Module) -> LayerGroups:
    """The parameters by depth, earliest layers first, the head last: what `layer_decay` counts.

    A depth is a repeated block (of a ResNet, a transformer), or a layer with weights where a net has no blocks; norms
    and other parameters without a block of their own belong to what comes before them.
    """
    head = find_head(net)
    is_head = {id(p) for name, p in net.named_parameters() if name.startswith(head)}
    depths: LayerGroups = [[]]
    is_begun = False  # the last depth holds a layer or block
    for unit, is_layer in _units(net, is_divided=True):
        parameters = [parameter for parameter in unit if id(parameter) not in is_head]
        has_weights = is_layer and any(parameter.ndim >= 2 for parameter in parameters)
        if has_weights and is_begun:
            depths.append([])
        is_begun = is_begun or has_weights
        depths[-1] += parameters
    last = [parameter for parameter in net.parameters() if id(parameter) in is_head]
    return [depth for depth in (*depths, last) if depth]


def _units(module: nn.Module, is_divided: bool = False) -> Iterator[tuple[list[nn.Parameter], bool]]:
    """(parameters, True) of each block or layer in the net's order; (its own, False) of a module that is divided."""
    is_divided = is_divided and bool(_children(module))
    if not (is_divided or _is_row(module) or _holds_blocks(module)):
        yield list(module.parameters()), True
        return
    yield list(module.parameters(recurse=False)), False
    for child in _children(module):
        yield from _units(child)


def _is_row(module: nn.Module) -> bool:
    """True for a plain sequence; a class derived from nn.Sequential is a block."""
    return isinstance(module, nn.ModuleList) or type(module) is nn.Sequential


def _holds_blocks(module: nn.Module) -> bool:
    """True when a sequence somewhere in it holds at least two blocks of one class."""
    for child in _children(module):
        blocks = [type(block) for block in (_children(child) if _is_row(child) else []) if _children(block)]
        if len(blocks) > len(set(blocks)) or _holds_blocks(child):
            return True
    return False


def learning_rates(net: nn.Module, params: Params) -> tuple[LayerGroups, Sequence[float]]:
    """The parts of the net that have a learning rate each, earliest first, and these rates.

    UserError when the number of rates is wrong.
    """
    if params.layer_decay != 1 and not isinstance(params.learning_rate, list):
        parts = layer_depths(net)
        return parts, [params.learning_rate * params.layer_decay**k for k in reversed(range(len(parts)))]
    parts = layer_groups(net)
    rates = params.learning_rate if isinstance(params.learning_rate, list) else [params.learning_rate] * len(parts)
    if len(rates) != len(parts):
        raise UserError(f"learning_rate: {len(rates)} rates for {len(parts)} layer groups; give one, or {len(parts)}")
    return parts, rates


def optimizer_groups(net: nn.Module, params: Params) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: one learning rate per layer group, earliest layers first.

    Matrices and filters decay, biases and norm gains (ndim < 2) do not. UserError when the number of rates is wrong.
    """
    layers, rates = learning_rates(net, params)
    groups: list[dict[str, Any]] = []
    for number, (layer, rate) in enumerate(zip(layers, rates, strict=True)):
        # With lr_schedule the rates are absolute, and a list of rates gives the proportions.
        initial = rate / max(rates) if params.lr_schedule else rate
        group = {"lr": initial, "initial_lr": initial, "layer_group": number}
        groups.append(group | {"params": [p for p in layer if p.ndim >= 2], "weight_decay": params.wd})
        groups.append(group | {"params": [p for p in layer if p.ndim < 2], "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
