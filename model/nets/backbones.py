"""Nets of torchvision and timm by name, with a head for K classes."""

import inspect
import typing
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from model.nets.published import published_size, timm_name
from model.nets.spec import NetSpec
from utils import UserError, nearest, read_tensors

OF_OTHER_KEYS = (
    "weights",
    "progress",
    "num_classes",
    "image_size",
    "input_size",
)  # pretrain, n_clas and im_sz say them


# --- torchvision --------------------------------------------------------------------------------------


def list_torchvision_nets() -> list[str]:
    """The names of its classification nets."""
    return models.list_models(module=models)


def build_torchvision(spec: NetSpec) -> nn.Module:
    """A torchvision classification net, its head ending in dropout and `num_classes` logits.

    Nets with published weights that are tied to an image size get that size. With `small_stem` a ResNet begins with a
    3x3 convolution of stride 1 and no max pool, for images of about 32 px.
    """
    builder = models.get_model_builder(spec.arch)
    cls = typing.get_type_hints(builder)["return"]
    _check_arguments(cls, builder, spec.arch_args)
    # Additional arguments of some classes.
    given: dict[str, object] = {}
    if cls is models.VisionTransformer:
        given["image_size"] = _tied_size(spec)
    elif cls is models.MaxVit:
        given["input_size"] = (_tied_size(spec),) * 2
    elif cls in (models.Inception3, models.GoogLeNet):
        # The loader normalises as published weights want it: in the net, a later start would not know of it.
        given |= {"aux_logits": False, "init_weights": True, "transform_input": False}
    net = builder(weights=None, num_classes=spec.num_classes, **(given | spec.arch_args))
    set_head_dropout(net, spec.dropout)
    if spec.small_stem and isinstance(net, models.ResNet):
        set_small_stem(net)
    return net


def set_small_stem(net: models.ResNet) -> None:
    """Replace the stem of a ResNet (7x7 of stride 2, max pool) by a 3x3 convolution of stride 1."""
    net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.set_submodule("maxpool", nn.Identity())


class DropoutLinear(nn.Linear):
    """Dropout, then a linear layer, under the parameter names of the linear layer alone."""

    def __init__(self, linear: nn.Linear, dropout: float):
        """Takes over the parameters of `linear`."""
        # On "meta", so that no random number is drawn for weights that are not used.
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.dropout = dropout

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.dropout(input, self.dropout, self.training))


def set_head_dropout(net: nn.Module, dropout: float) -> None:
    """Dropout before the last layer: the dropout layer that is already there, else a new one."""
    leaves = [(name, module) for name, module in net.named_modules() if not list(module.children())]
    last = max(i for i, (_, module) in enumerate(leaves) if isinstance(module, nn.Linear | nn.Conv2d))
    before = leaves[last - 1][1]
    name, layer = leaves[last]
    if isinstance(before, nn.Dropout):
        before.p = dropout
    elif isinstance(layer, nn.Linear):
        net.set_submodule(name, DropoutLinear(layer, dropout))
    else:
        raise AssertionError(f"{type(net).__name__} ends in a convolution with no dropout before it")


def _check_arguments(cls: type[nn.Module], builder: Callable[..., nn.Module], names: Iterable[str]) -> None:
    """UserError for an argument that neither a torchvision builder nor the class behind it takes."""
    parameters = {**inspect.signature(cls).parameters, **inspect.signature(builder).parameters}
    allowed = [n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD and n not in OF_OTHER_KEYS]
    for name in names:
        if name not in allowed:
            raise UserError(f"arch_args: {cls.__name__} takes no {name!r}; {nearest(name, allowed)}")


def _tied_size(spec: NetSpec) -> int:
    """im_sz. UserError when the published weights are for another size."""
    size = published_size(spec.arch, spec.published) if spec.published else spec.im_sz
    if size != spec.im_sz:
        raise UserError(f"pretrain: the published weights of {spec.arch} are for {size} px; set im_sz to {size}")
    return spec.im_sz


# --- timm ---------------------------------------------------------------------------------------------


def build_timm(spec: NetSpec) -> nn.Module:
    """A timm net ("timm/resnet18", "timm/resnet18.a1_in1k"), with random weights."""
    return _create_timm(spec, num_classes=spec.num_classes)


def read_timm_tensors(spec: NetSpec, file: Path) -> dict[str, Tensor]:
    """Published weights as timm itself puts them into this net: under today's names, for this image size.

    UserError when they do not fit: arch_args can make another net of it.
    """
    import timm

    config = timm.get_pretrained_cfg(timm_name(spec.arch, spec.published))
    assert config is not None  # it has published weights
    # A second net, with the head of the weights: timm is strict with it.
    overlay = {"state_dict": read_tensors(file), "custom_load": False}
    with torch.random.fork_rng(devices=[]):
        try:
            net = _create_timm(spec, num_classes=config.num_classes, pretrained=True, pretrained_cfg_overlay=overlay)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            raise UserError(
                f"pretrain: the published weights of {spec.arch} do not fit it with arch_args {spec.arch_args}: "
                f"{' '.join(lines[1:2] or lines)[:160]}; leave these arch_args out, or give other weights"
            ) from None
    return net.state_dict()


def _create_timm(spec: NetSpec, **given: object) -> nn.Module:
    """timm's net for the spec's image size and dropout. UserError for a name or arguments that it does not take."""
    try:
        import timm
    except ImportError:
        raise UserError(f"arch: {spec.arch} needs timm; install it: pip install timm") from None
    name = timm_name(spec.arch, spec.published)
    given["drop_rate"] = spec.dropout
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size and config.input_size[-1] != spec.im_sz:
        given["img_size"] = spec.im_sz
    for key in ("drop_rate", "num_classes", "img_size"):
        if key in given and key in spec.arch_args:
            raise UserError(f"arch_args: {key!r} is set by the kit (ps, n_clas, im_sz)")
    create: Callable[..., nn.Module] = timm.create_model
    return create(name, **(given | spec.arch_args))
