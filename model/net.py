"""Nets: images (B, 3, H, W) -> logits (B, K).

To add one: write the class, add one line to NETS. Its constructor takes `num_classes`, `dropout` (`ps` of
params.json: the probability before the last layer), `im_sz` if it needs the image size, and keyword arguments
of its own, which are `arch_args`. Or keep it in the experiment folder and name it "file.py:Name". A net may
define `layer_groups()` (lists of parameters, earliest first) and `predict(images)` (probabilities, for
inference of its own).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, max_pool2d
from torch.nn.modules.batchnorm import _BatchNorm

from model.nets.weights import clean_names, load_tensors, published_weights, reason
from model.pixels.progressive import sizes
from utils import UserError, check_kwargs, is_out_of_memory, key64, load_reference, nearest, read_tensors

if TYPE_CHECKING:
    from params import Params

SMALL_IMAGE = 64  # px; up to this size ResNets get the stem for small images


def conv_bn_relu(num_in: int, num_out: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    conv = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(num_out), nn.ReLU(inplace=True))


class SimpleCNN(nn.Module):
    """Three blocks of two 3x3 convolutions and a max pool, `n_filters`, twice, four times wide; linear."""

    def __init__(self, num_classes: int, dropout: float = 0.0, n_filters: int = 32):
        super().__init__()
        widths = [n_filters, 2 * n_filters, 4 * n_filters]
        self.blocks = nn.Sequential()
        for num_in, num_out in zip([3, *widths], widths, strict=False):
            self.blocks.append(
                nn.Sequential(conv_bn_relu(num_in, num_out), conv_bn_relu(num_out, num_out), nn.MaxPool2d(2))
            )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(widths[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(dim=(2, 3)))


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al., Gradient-based learning applied to document recognition, 1998), with ReLU.

    An adaptive pool makes the 5x5 maps that its linear layers want from images of any size.
    """

    def __init__(self, num_classes: int, dropout: float = 0.0, n_filters: int = 6):
        super().__init__()
        num_second = round(n_filters * 16 / 6)
        self.features = nn.Sequential(
            nn.Conv2d(3, n_filters, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(n_filters, num_second, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.AdaptiveMaxPool2d(5),
        )
        self.hidden = nn.Sequential(
            nn.Linear(num_second * 25, 120), nn.ReLU(inplace=True), nn.Linear(120, 84), nn.ReLU(inplace=True)
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(84, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.features(x).flatten(1)))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def patch_filters(size: int) -> Tensor:
    """(3 * size^2, 3, size, size): a cosine basis of square RGB patches, in opponent colours; orthonormal.

    Close to the principal components of natural images' patches, which whiten them, but the same for every data set.
    """
    steps = torch.arange(size)
    cosines = torch.cos(torch.pi / size * torch.outer(steps, steps + 0.5))  # (frequency, place)
    colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    cosines, colours = (rows / rows.norm(dim=1, keepdim=True) for rows in (cosines, colours))
    return torch.einsum("ck,uy,vx->cuvkyx", colours, cosines, cosines).reshape(-1, 3, size, size)


class PatchStem(nn.Module):
    """Images in a fixed basis of 2x2 patches, each coefficient to unit variance, with both signs: 24 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", patch_filters(2))
        self.norm = nn.BatchNorm2d(12, affine=False)
        self.num_channels = 24

    def forward(self, images: Tensor) -> Tensor:
        found = self.norm(conv2d(images, self.filters))
        return gelu(torch.cat([found, -found], dim=1))


class ConvNormAct(nn.Module):
    """3x3 convolution that begins as the identity, max pool where it halves, batch norm without gain, GELU."""

    def __init__(self, num_in: int, num_out: int, halve: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        with torch.no_grad():
            nn.init.dirac_(self.conv.weight[: min(num_in, num_out)])
        self.halve = halve
        self.norm = nn.BatchNorm2d(num_out)
        self.norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.halve and min(x.shape[2:]) > 1:
            x = max_pool2d(x, 2)  # before the norm, which has less to do then
        return gelu(self.norm(x))


class ResNet9(nn.Module):
    """A small, fast residual net for 32 px images: a fixed stem, seven 3x3 convolutions and a linear layer.

    The shape is David Page's ("How to train your ResNet", 2018). Fixed patches at the start, convolutions that begin
    as the identity, pooling before the norm, norms without gain and small logits (`scale`) are what later fast CIFAR
    nets found (Keller Jordan, arXiv:2404.00498): fewer epochs, so that a CPU can train it in minutes.
    """

    def __init__(
        self, num_classes: int, dropout: float = 0.0, widths: Sequence[int] = (64, 256, 256), scale: float = 1 / 9
    ):
        super().__init__()
        a, b, c = widths
        self.stem, self.scale = PatchStem(), scale
        self.stages = nn.Sequential(
            nn.Sequential(ConvNormAct(self.stem.num_channels, a, halve=True), Residual(ConvNormAct(a, a))),
            nn.Sequential(ConvNormAct(a, b, halve=True), Residual(ConvNormAct(b, b))),
            nn.Sequential(ConvNormAct(b, c, halve=True), Residual(ConvNormAct(c, c), ConvNormAct(c, c))),
        )
        self.head = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(c, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images))) * self.scale  # (B, 3, H, W) -> (B, K)


class SignNet(nn.Module):
    """The vision net of Stanford's cs230 template, for SIGNS at 64 px: three convolutions, two linear layers.

    The image size must be a multiple of 8. Logits, where the template gives log-probabilities: the same loss.
    """

    def __init__(self, num_classes: int, dropout: float = 0.0, im_sz: int = 64, num_channels: int = 32):
        super().__init__()
        if im_sz % 8:
            raise ValueError(f"im_sz {im_sz} is no multiple of 8")
        widths = [num_channels, 2 * num_channels, 4 * num_channels]
        self.features = nn.Sequential()
        for num_in, num_out in zip([3, *widths], widths, strict=False):
            conv = nn.Conv2d(num_in, num_out, 3, padding=1)
            self.features.extend([conv, nn.BatchNorm2d(num_out), nn.MaxPool2d(2), nn.ReLU(inplace=True)])
        width = widths[-1]
        self.hidden = nn.Sequential(
            nn.Linear((im_sz // 8) ** 2 * width, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.features(x).flatten(1)))


NETS: dict[str, Callable[..., nn.Module]] = {
    "simple_cnn": SimpleCNN,
    "lenet": LeNet,
    "resnet9": ResNet9,
    "sign_net": SignNet,
}


# --- by name ----------------------------------------------------------------------------------------


def make_net(params: "Params", num_classes: int, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The net that `params` names, in train mode, initialised as a function of params.seed alone.

    `pretrain` is honoured, unless `weights` are given: the tensors of a net trained with these params
    (evaluate, predict, resume), which must fit exactly; nothing is read or downloaded then.
    `net.weights_report` says in one line what `pretrain` loaded; "" when nothing.
    A ResNet gets the small-image stem (3x3, stride 1, no max pool) at im_sz <= 64 px, unless the weights it
    takes were trained with the 7x7 one: those of pretrain 1 always were.
    The net is tried with images of every size that it will see, but a library's net at its usual 224 px or more.
    UserError: unknown arch, arch_args that its constructor refuses, weights or an image size that do not fit.
    """
    im_sz = params.im_sz or 224
    published = weights is None and params.pretrain == 1
    tensors, source = (None, "") if weights is None else (clean_names(weights), "weights")
    if weights is None and isinstance(params.pretrain, str):
        source = str(Path(params.folder) / Path(params.pretrain).expanduser())
        tensors = clean_names(read_tensors(source))
    stem = None if tensors is None else tensors.get("conv1.weight")
    small = im_sz <= SMALL_IMAGE and not published and (stem is None or stem.shape[-1] == 3)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key64(params.seed, "init"))
        try:
            net = _build(params, num_classes, im_sz, published, small)
        except UserError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"arch: {params.arch} cannot be built with arch_args {params.arch_args}: {reason(error)}"
            ) from error
    own = params.arch in NETS or ".py:" in params.arch
    for side in sizes(params, im_sz):
        if side < im_sz or im_sz < 224 or own:
            _check_output(net, params.arch, num_classes, side)
    if published and not params.arch.startswith("timm/"):
        tensors, source = published_weights(params.arch)
    report = None if tensors is None else load_tensors(net, tensors, source)
    if weights is not None and report is not None and not report.complete:
        raise UserError(f"these weights are not of the net that params.json describes: {report}")
    net.weights_report = str(report) if report and weights is None else getattr(net, "weights_report", "")
    return net.train()


def _build(params: "Params", num_classes: int, im_sz: int, published: bool, small: bool) -> nn.Module:
    """The net as constructed: weights not yet loaded, timm's published ones excepted."""
    arch, args = params.arch, dict(params.arch_args)
    if arch in NETS or ".py:" in arch:
        constructor = NETS[arch] if arch in NETS else load_reference(arch, Path(params.folder))
        if not callable(constructor):
            raise UserError(f"arch: {arch} is a {type(constructor).__name__}, not a net's class")
        if published:
            raise UserError(f"pretrain: {arch} has no published weights; give a weights file, or 0")
        given = _given(constructor, arch, num_classes, params.ps, im_sz)
        check_kwargs(constructor, args, "arch_args", skip=given)
        net = constructor(**args, **given)
        if not isinstance(net, nn.Module):
            raise UserError(f"arch: {arch} gave a {type(net).__name__}, not a torch.nn.Module")
        return net
    from model.nets import backbones  # torchvision takes two seconds to import

    if arch.startswith("timm/"):
        return backbones.build_timm(arch[5:], num_classes, params.ps, im_sz, args, published)
    if arch not in (names := backbones.torchvision_names()):
        raise UserError(f"arch: unknown net {arch!r}; {nearest(arch, [*NETS, *names])}")
    return backbones.build_torchvision(arch, num_classes, params.ps, im_sz, args, published, small)


def _given(constructor: Callable, arch: str, num_classes: int, dropout: float, im_sz: int) -> dict[str, Any]:
    """What the kit gives to a constructor: `num_classes` always, `dropout` and `im_sz` when it takes them."""
    takes = inspect.signature(constructor).parameters
    if dropout and "dropout" not in takes:
        raise UserError(f"ps: {arch} takes no `dropout`; set ps to 0, or give its constructor that argument")
    given = {"num_classes": num_classes, "dropout": dropout, "im_sz": im_sz}
    return {name: value for name, value in given.items() if name == "num_classes" or name in takes}


@torch.no_grad()
def _check_output(net: nn.Module, arch: str, num_classes: int, im_sz: int) -> None:
    """One forward pass of two black images: UserError when the net cannot take them, or gives no (2, K)."""
    if any(parameter.is_meta for parameter in net.parameters()):
        return
    try:
        logits = net.eval()(torch.zeros(2, 3, im_sz, im_sz))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"arch: {arch} cannot take images of {im_sz} px: {reason(error)}") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        given = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"arch: {arch} gave {given} for 2 images; logits (2, {num_classes}) are expected")


# --- layer groups -----------------------------------------------------------------------------------


def layer_groups(net: nn.Module) -> list[list[nn.Parameter]]:
    """Early body, late body, head, each parameter once; or what the net's own layer_groups() says.

    The head is the top-level module that holds the last linear or convolutional layer. The body is cut in the
    middle of its blocks: ResNets into stem, layer1, layer2 | layer3, layer4.
    """
    if callable(getattr(net, "layer_groups", None)):
        groups = [list(group) for group in net.layer_groups()]
        if sorted(id(p) for group in groups for p in group) != sorted(id(p) for p in net.parameters()):
            raise UserError(f"{type(net).__name__}.layer_groups() must hold every parameter exactly once")
        return groups
    root = net
    while len(children := _children(root)) == 1 and _children(children[0]):
        root = children[0]
    if not children:
        return [[], [], list(net.parameters())]
    layers = [m for m in root.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    head = next((child for child in children if layers and layers[-1] in list(child.modules())), children[-1])
    late = _late_half([child for child in children if child is not head])
    head_ids = {id(p) for p in head.parameters()}
    late_ids = {id(p) for module in late for p in module.parameters()}
    groups = [[], [], []]
    for parameter in net.parameters():
        groups[2 if id(parameter) in head_ids else 1 if id(parameter) in late_ids else 0].append(parameter)
    return groups


def _late_half(units: list[nn.Module]) -> list[nn.Module]:
    """The second half of a body's blocks. The largest is opened until there are three, or layers alone."""
    while len(blocks := [unit for unit in units if _children(unit)]) < 3 and blocks:
        largest = max(blocks, key=lambda unit: sum(p.numel() for p in unit.parameters()))
        at = units.index(largest)
        units = [*units[:at], *_children(largest), *units[at + 1 :]]
    steps = blocks or units
    return units[units.index(steps[(len(steps) + 1) // 2]) :] if len(steps) > 1 else []


def _children(module: nn.Module) -> list[nn.Module]:
    """Its direct children that hold parameters."""
    return [child for child in module.children() if next(child.parameters(), None) is not None]


def set_frozen(net: nn.Module, num_groups: int) -> None:
    """Freeze the first `num_groups` layer groups (0: none): no gradient, batch norm keeps its statistics.

    Such a batch norm stays in eval mode when net.train() is called. What the net itself froze stays frozen.
    """
    groups = layer_groups(net)
    if num_groups >= len(groups):
        raise UserError(f"freeze: groups: {num_groups} of the net's {len(groups)} leave nothing to train")
    frozen = {id(parameter) for group in groups[:num_groups] for parameter in group}
    for parameter in net.parameters():
        if id(parameter) in frozen and parameter.requires_grad:
            parameter.requires_grad_(False)
            parameter.grad, parameter.frozen_by_kit = None, True
        elif id(parameter) not in frozen and getattr(parameter, "frozen_by_kit", False):
            parameter.requires_grad_(True)
            parameter.frozen_by_kit = False
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.__dict__.pop("train", None)
            module.train(net.training)
            if any(id(parameter) in frozen for parameter in module.parameters(recurse=False)):
                module.train = MethodType(_stay_in_eval, module)
                module.eval()


def freeze(net: nn.Module, params: "Params", epoch: int) -> None:
    """Before each epoch: the first layer groups learn nothing until `freeze.epochs` are over."""
    set_frozen(net, params.freeze.groups if params.freeze and epoch < params.freeze.epochs else 0)


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return type(module).train(module, False)


def predict_probabilities(net: nn.Module, images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, K) float32 probabilities: net.predict(images) if it has one, else the softmax."""
    if callable(getattr(net, "predict", None)):
        return net.predict(images).float()
    return net(images).float().softmax(dim=1)
