"""Nets: images (B, 3, H, W) -> logits (B, K). Layer groups, freezing, pretrained weights.

Add one: a module whose constructor takes num_classes and dropout, and a line in NETS. A net may define
`layer_groups()` (lists of parameters, earliest first) and `predict(images)` (B, 3, H, W) -> (B, K)
probabilities, for inference of its own.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from params import Params
from utils import UserError, check_kwargs, key64, lookup, nearest, read_tensors


def conv_bn_relu(num_in: int, num_out: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU: (B, num_in, H, W) -> (B, num_out, H, W)."""
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, 3, padding=1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU(inplace=True)
    )


class SimpleCNN(nn.Module):
    """Three blocks of two 3x3 conv + BN + ReLU and a max pool; global average, dropout, linear."""

    def __init__(self, num_classes: int, dropout: float = 0.0, n_filters: int = 32):
        super().__init__()
        widths = [3, n_filters, 2 * n_filters, 4 * n_filters]
        self.blocks = nn.Sequential(
            *(nn.Sequential(conv_bn_relu(a, b), conv_bn_relu(b, b), nn.MaxPool2d(2)) for a, b in zip(widths, widths[1:], strict=False))
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(widths[-1], num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(images))  # (B, 4F, H/8, W/8) -> (B, K)


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al., 1998) with ReLU and max pooling; any input size, through adaptive pooling to 5x5."""

    def __init__(self, num_classes: int, dropout: float = 0.0, n_filters: int = 6):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, n_filters, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(n_filters, 16 * n_filters // 6, 5, padding=2), nn.ReLU(inplace=True), nn.AdaptiveMaxPool2d(5),
            nn.Flatten(), nn.Linear(16 * n_filters // 6 * 25, 120), nn.ReLU(inplace=True), nn.Linear(120, 84), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(84, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


class Residual(nn.Module):
    """x + f(x)"""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ConvNormAct(nn.Module):
    """3x3 convolution, max pool where it halves, batch norm, GELU. Pooling first leaves the norm a quarter of the work."""

    def __init__(self, num_in: int, num_out: int, halve: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2) if halve else nn.Identity()
        self.norm = nn.BatchNorm2d(num_out)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.norm(self.pool(self.conv(x))))


class ResNet9(nn.Module):
    """A small, fast residual net for 32 px images: eight 3x3 convolutions and a linear layer.

    The shape is David Page's ("How to train your ResNet", 2018); the widths and the pooling before the norm
    follow what small fast CIFAR nets settled on, so that a CPU can train it in minutes.
    """

    def __init__(self, num_classes: int, dropout: float = 0.0, widths: Sequence[int] = (64, 128, 256), stem: int = 24):
        super().__init__()
        a, b, c = widths
        self.stem = ConvNormAct(3, stem)
        self.stages = nn.Sequential(
            nn.Sequential(ConvNormAct(stem, a, halve=True), Residual(ConvNormAct(a, a))),
            nn.Sequential(ConvNormAct(a, b, halve=True), Residual(ConvNormAct(b, b))),
            nn.Sequential(ConvNormAct(b, c, halve=True), Residual(ConvNormAct(c, c), ConvNormAct(c, c))),
        )
        self.head = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(c, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images)))  # (B, 3, H, W) -> (B, K)


class SignNet(nn.Module):
    """The vision net of Stanford's CS230 project example: three conv + BN blocks, each max-pooled, then two linear layers."""

    def __init__(self, num_classes: int, dropout: float = 0.0, num_channels: int = 32, im_sz: int = 64):
        super().__init__()
        widths = [3, num_channels, 2 * num_channels, 4 * num_channels]
        blocks: list[nn.Module] = []
        for a, b in zip(widths, widths[1:], strict=False):
            blocks += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.MaxPool2d(2), nn.ReLU(inplace=True)]
        width = 4 * num_channels
        self.body = nn.Sequential(*blocks, nn.Flatten())  # (B, 4C * (im_sz / 8)^2)
        self.hidden = nn.Sequential(nn.Linear(width * (im_sz // 8) ** 2, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.hidden(self.body(images)))


NETS: dict[str, Any] = {"simple_cnn": SimpleCNN, "lenet": LeNet, "resnet9": ResNet9, "sign_net": SignNet}


# --- building -----------------------------------------------------------------------------------------


def make_net(params: Params, num_classes: int) -> nn.Module:
    """The net that `params` describes, initialised as a function of the seed. UserError for names and arguments.

    `net.weights_report` says what pretrained weights matched ("" without).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key64(params.seed, "init"))
        net = _build(params, num_classes)
    net.weights_report = ""
    if isinstance(params.pretrain, str):
        net.weights_report = str(load_weights(net, params.folder / params.pretrain))
    return net


def _build(params: Params, num_classes: int) -> nn.Module:
    arch, ours = params.arch, {"num_classes": num_classes, "dropout": params.ps, "im_sz": params.im_sz}
    if arch.startswith("timm/"):
        return _timm(params, num_classes)
    if arch not in NETS and ".py:" not in arch:
        return _torchvision(params, num_classes)
    if params.pretrain == 1:
        raise UserError(f"pretrain: 1 means published weights, and {arch} has none; give a weights file, or 0")
    constructor = lookup(NETS, arch, "arch", params.folder)
    check_kwargs(constructor, params.arch_args, "arch_args", skip=("num_classes",))
    taken = inspect.signature(constructor).parameters
    net = _construct(constructor, arch, {k: v for k, v in ours.items() if k in taken} | params.arch_args)
    if ".py:" in arch:
        _try_out(net, arch, num_classes, params.im_sz or 32)
    return net


def _construct(constructor: Any, arch: str, kwargs: dict[str, Any]) -> nn.Module:
    try:
        net = constructor(**kwargs)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError, ZeroDivisionError) as error:
        raise UserError(f"arch: {arch} cannot be built with {kwargs}: {type(error).__name__}: {error}") from None
    if not isinstance(net, nn.Module):
        raise UserError(f"arch: {arch} gives a {type(net).__name__}, not a torch.nn.Module")
    return net


@torch.no_grad()
def _try_out(net: nn.Module, arch: str, num_classes: int, im_sz: int) -> None:
    """A net of the user's own must map images to logits: say so here, not in the middle of an epoch."""
    mode = net.training
    try:
        shape = tuple(net.eval()(torch.zeros(2, 3, im_sz, im_sz)).shape)
    except Exception as error:
        raise UserError(f"arch: {arch} fails on images (2, 3, {im_sz}, {im_sz}): {error}") from None
    net.train(mode)
    if shape != (2, num_classes):
        raise UserError(f"arch: {arch} maps images (2, 3, {im_sz}, {im_sz}) to {shape}; logits (2, {num_classes}) are wanted")


def torchvision_names() -> list[str]:
    """Every classification net of torchvision."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def _torchvision(params: Params, num_classes: int) -> nn.Module:
    """A torchvision net with a new head, and for ResNets on small images a stem that keeps their pixels.

    The stem (3x3, stride 1, no max pool; He et al., arXiv:1512.03385, section 4.2) is used up to 64 px, unless
    published weights are wanted, which fit the large one alone.
    """
    from torchvision import models

    arch = params.arch
    if arch not in torchvision_names():
        raise UserError(f"arch: unknown net {arch!r}; {nearest(arch, [*NETS, *torchvision_names(), 'timm/NAME', 'file.py:Name'])}")
    builder = models.get_model_builder(arch)
    kwargs: dict[str, Any] = {"aux_logits": False} if arch in ("googlenet", "inception_v3") and not params.pretrain else {}
    kwargs |= {"init_weights": True} if arch in ("googlenet", "inception_v3") else {}
    module = inspect.getmodule(inspect.unwrap(builder))
    class_names = [name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__]
    classes = [getattr(module, name) for name in class_names if issubclass(getattr(module, name), nn.Module)]
    allowed = {name for cls in classes for name in inspect.signature(cls).parameters} | {"progress"}
    for name in params.arch_args:
        if name not in allowed or name in ("num_classes", "weights"):
            raise UserError(f"arch_args: {arch} takes no {name!r}; {nearest(name, allowed - {'num_classes', 'weights', 'progress'})}")
    weights = _published(arch) if params.pretrain == 1 else None
    net = _construct(lambda **kw: builder(weights=weights, **kw), arch, kwargs | params.arch_args) if not weights else _download(builder, arch, weights, params)
    if weights and arch in ("googlenet", "inception_v3"):
        net.aux_logits, net.AuxLogits, net.aux1, net.aux2 = False, None, None, None
    replace_head(net, num_classes, params.ps)
    if isinstance(net, models.ResNet) and (params.im_sz or 224) <= 64 and params.pretrain != 1:
        net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    return net


def _published(arch: str) -> Any:
    from torchvision import models

    return models.get_model_weights(arch).DEFAULT


def _download(builder: Any, arch: str, weights: Any, params: Params) -> nn.Module:
    try:
        return builder(weights=weights, **params.arch_args)
    except (OSError, RuntimeError) as error:
        where = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
        raise UserError(
            f"pretrain: the weights of {arch} cannot be downloaded ({error}); without a network put the file at {where}, "
            f'or give a local file: "pretrain": "weights.pth"'
        ) from None


def _timm(params: Params, num_classes: int) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise UserError(f"arch: {params.arch} needs timm: pip install timm") from None
    name = params.arch.removeprefix("timm/")
    if not timm.is_model(name):
        raise UserError(f"arch: timm has no {name!r}; {nearest(name, timm.list_models())}")
    kwargs = {"num_classes": num_classes, "drop_rate": params.ps, "pretrained": params.pretrain == 1} | params.arch_args
    if params.pretrain == 1:
        try:
            return timm.create_model(name, **kwargs)
        except Exception as error:
            raise UserError(f"pretrain: the weights of {params.arch} cannot be loaded: {str(error).splitlines()[0][:160]}") from None
    return _construct(lambda **kw: timm.create_model(name, **kw), params.arch, kwargs)


def head_name(net: nn.Module) -> str:
    """The name of the layer that gives the logits: the last Linear, or the last 1x1 convolution (SqueezeNet)."""
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not names or type(net).__name__ == "SqueezeNet":
        names = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    return names[-1]


def replace_head(net: nn.Module, num_classes: int, dropout: float) -> None:
    """Put dropout and a new layer for `num_classes` where the net's last layer is. Dropout of the net's own head goes."""
    name = head_name(net)
    parent_name, _, child = name.rpartition(".")
    parent, old = net.get_submodule(parent_name), net.get_submodule(name)
    if isinstance(old, nn.Conv2d):
        new: nn.Module = nn.Conv2d(old.in_channels, num_classes, 1)
        nn.init.normal_(new.weight, 0.0, 0.01)
    else:
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    setattr(parent, child, nn.Sequential(nn.Dropout(dropout), new) if dropout else new)
    if hasattr(net, "num_classes"):
        net.num_classes = num_classes


# --- layer groups and freezing ------------------------------------------------------------------------


def layer_groups(net: nn.Module) -> list[list[nn.Parameter]]:
    """Three lists of parameters: body early, body late, head. Every parameter stands in one of them."""
    if hasattr(net, "layer_groups"):
        return [list(group) for group in net.layer_groups()]
    head = net.head if isinstance(getattr(net, "head", None), nn.Module) else net.get_submodule(_head_module(net))
    in_head = {id(p) for p in head.parameters()}
    body = [[p for p in unit.parameters() if id(p) not in in_head] for unit in _units(net)]
    body = [parameters for parameters in body if parameters]
    middle = len(body) // 2
    early = [p for parameters in body[:middle] for p in parameters]
    late = [p for parameters in body[middle:] for p in parameters]
    seen = {id(p) for p in early} | {id(p) for p in late} | in_head
    loose = [p for p in net.parameters() if id(p) not in seen]  # parameters of the net itself: position embeddings, ...
    return [[*loose, *early], late, list(head.parameters())]


def _head_module(net: nn.Module) -> str:
    name = head_name(net)
    while name and isinstance(net.get_submodule(name.rpartition(".")[0]), nn.Sequential) and "." in name:
        parent = name.rpartition(".")[0]
        if sum(isinstance(m, nn.Linear | nn.Conv2d) for m in net.get_submodule(parent).modules()) > 1:
            break
        name = parent
    return name


def _units(net: nn.Module) -> list[nn.Module]:
    """The net's stages in order: its children, a lone Sequential among them opened."""
    units = list(net.children())
    while True:
        heavy = [u for u in units if any(True for _ in u.parameters())]
        big = [u for u in heavy if isinstance(u, nn.Sequential) and len(u) > 1]
        total = sum(p.numel() for p in net.parameters())
        dominant = [u for u in big if sum(p.numel() for p in u.parameters()) > 0.6 * total]
        if not dominant or len(heavy) > 4:
            return units
        at = units.index(dominant[0])
        units[at : at + 1] = list(dominant[0].children())


def set_frozen(net: nn.Module, num_groups: int) -> None:
    """Freeze the first `num_groups` layer groups: no gradient, and their batch norms keep their statistics.

    Survives net.train(): called again each epoch, and a frozen batch norm is put back into eval mode by a hook.
    """
    for number, group in enumerate(layer_groups(net)):
        for parameter in group:
            parameter.requires_grad_(number >= num_groups)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            frozen = module.weight is not None and not module.weight.requires_grad
            if frozen and not hasattr(module, "_frozen_hook"):
                module._frozen_hook = module.register_forward_pre_hook(lambda module, args: module.eval() and None)
            elif not frozen and hasattr(module, "_frozen_hook"):
                module._frozen_hook.remove()
                del module._frozen_hook


# --- weights ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightsReport:
    """What a weights file brought: names that matched, were missing, unexpected, or of another shape."""

    path: Path
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} tensors matched"]
        for title in ("missing", "unexpected", "mismatched"):
            names = getattr(self, title)
            if names:
                parts.append(f"{len(names)} {title} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
        return f"weights from {self.path}: " + ", ".join(parts)


def load_weights(net: nn.Module, path: Path) -> WeightsReport:
    """Load every tensor whose name and shape fit. UserError when none does."""
    given = {name.removeprefix("module.").removeprefix("_orig_mod."): value for name, value in read_tensors(path).items()}
    own = net.state_dict()
    matched = [name for name in own if name in given and given[name].shape == own[name].shape]
    report = WeightsReport(
        path=path,
        matched=matched,
        missing=[name for name in own if name not in given],
        unexpected=[name for name in given if name not in own],
        mismatched=[name for name in own if name in given and name not in matched],
    )
    if not matched:
        raise UserError(f"pretrain: none of the {len(given)} tensors in {path} fits this net; is it another arch's file?")
    net.load_state_dict({name: given[name] for name in matched}, strict=False)
    return report


def predict_probabilities(net: nn.Module, images: Tensor) -> Tensor:
    """(B, K) probabilities: the net's own predict(images) when it has one, else softmax of its logits."""
    if hasattr(net, "predict"):
        return net.predict(images)
    return net(images).float().softmax(dim=1)
