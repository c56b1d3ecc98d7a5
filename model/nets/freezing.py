"""Freezing: the first layer groups of a net stay as they are in the first epochs."""

from torch import nn

from model.nets.groups import LayerGroups, layer_groups, learning_rates
from params import Params
from utils import UserError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Freezer:
    """Freezes the first layer groups of `net` in the first epochs: `freeze` of params.json.

    Call it with the number of the epoch (from 0), after net.train(): it puts the batch norms of frozen groups back
    into eval mode, so that they keep their statistics. Parameters that the net itself froze stay frozen.
    UserError when nothing would be left to train.
    """

    def __init__(self, net: nn.Module, params: Params):
        self.net = net
        self.params = params
        self.steps = freeze_steps(params)
        self.groups = layer_groups(net)
        self.trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self.norms = _find_norms(net)
        most = max((groups for groups, _ in self.steps), default=0)
        if most >= max(len(self.groups), 1):
            raise UserError(
                f"freeze.groups: {most} given, but the net has {len(self.groups)} layer groups and one "
                f"must be left to train; possible: 1 to {len(self.groups) - 1}"
            )

    def __call__(self, epoch: int) -> None:
        self.freeze_groups(next((groups for groups, until in self.steps if epoch < until), 0))

    def freeze_groups(self, num_groups: int) -> None:
        """The first `num_groups` groups get no gradient, all others do."""
        frozen = {id(parameter) for group in self.groups[:num_groups] for parameter in group}
        for parameter in self.trainable:
            parameter.requires_grad_(id(parameter) not in frozen)
            if id(parameter) in frozen:
                parameter.grad = None
        for norm, owner in self.norms:
            if id(owner) in frozen:
                norm.eval()


def describe_groups(net: nn.Module, params: Params, num_epochs: float, is_pretrained: bool) -> list[str]:
    """Lines for the log: the layer groups as a small table, and what is odd about freezing them.

    `num_epochs`: of the whole run. `is_pretrained`: the net does not start from random weights.
    """
    groups, steps = layer_groups(net), freeze_steps(params)
    rates = _rates(net, params)
    rows = [("layer group", "parameters", "share of the rate" if params.lr_schedule else "rate", "frozen")]
    for number, (group, names) in enumerate(zip(groups, _group_names(net, groups), strict=True)):
        until = max((epoch for count, epoch in steps if count > number), default=0)
        values = sorted({rates[id(parameter)] for parameter in group})
        row = (
            f"{number + 1} {names}",
            f"{sum(parameter.numel() for parameter in group):,}",
            " to ".join(f"{value:.3g}" for value in values[:1] + values[1:][-1:]),
            f"until epoch {until:g}" if until else "no",
        )
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in rows]
    if steps and not is_pretrained:
        lines.append("freeze: the frozen layers keep their random weights (pretrain is 0)")
    if steps and steps[-1][1] >= num_epochs:
        count, until = steps[-1]
        lines.append(f"freeze: {count} layer groups never train: frozen until epoch {until:g} of {num_epochs:g}")
    return lines


def freeze_steps(params: Params) -> list[tuple[int, float]]:
    """(number of layer groups, the epoch until which they are frozen), the first step first."""
    freeze = params.freeze
    if freeze is None:
        return []
    if isinstance(freeze, list):
        return [(int(groups), until) for groups, until in freeze]
    return [(freeze.groups, freeze.epochs)]


def _find_norms(net: nn.Module) -> list[tuple[nn.Module, nn.Parameter | None]]:
    """Each batch norm, and a parameter that is frozen when it is: its own, else the last one before it."""
    norms = []
    before = None
    for module in net.modules():
        own = list(module.parameters(recurse=False))
        before = own[0] if own else before
        if isinstance(module, BATCH_NORMS):
            norms.append((module, before))
    return norms


def _rates(net: nn.Module, params: Params) -> dict[int, float]:
    """The peak learning rate of each parameter, by id; with lr_schedule, the share of its rates."""
    parts, rates = learning_rates(net, params)
    scale = max(rates) if params.lr_schedule else 1.0
    return {id(parameter): rate / scale for part, rate in zip(parts, rates, strict=True) for parameter in part}


def _group_names(net: nn.Module, groups: LayerGroups) -> list[str]:
    """The modules of each group, first to last; as few parts of their names as tell the groups apart."""
    paths = {id(parameter): name.split(".")[:-1] for name, parameter in net.named_parameters()}
    deepest = max((len(path) for path in paths.values()), default=0)
    names: list[list[str]] = []
    for depth in range(1, max(deepest, 1) + 1):
        names = [
            list(dict.fromkeys(".".join(paths[id(parameter)][:depth]) or "(net)" for parameter in group))
            for group in groups
        ]
        every = [name for group in names for name in group]
        if len(set(every)) == len(every):
            break
    return ["-" if not group else group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}" for group in names]
