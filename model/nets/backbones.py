"""Nets of torchvision and timm by name, with a head for K classes."""

import inspect
import typing
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from model.nets.weights import published_size, reason
from utils import UserError, nearest

GIVEN = ("weights", "progress", "num_classes", "image_size", "input_size")  # by other keys of params.json


def torchvision_names() -> list[str]:
    return models.list_models(module=models)


class DropoutLinear(nn.Linear):
    """Dropout, then a linear layer, under the parameter names of the linear layer alone."""

    dropout: float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, self.dropout, self.training))


def build_torchvision(
    arch: str,
    num_classes: int,
    dropout: float,
    im_sz: int,
    arch_args: dict[str, Any],
    published: bool,
    small: bool,
) -> nn.Module:
    """A torchvision classification net, its head ending in dropout and `num_classes` logits.

    `published`: it is to take the published weights, whose image size some nets are tied to.
    `small`: a ResNet gets a 3x3 convolution of stride 1 and no max pool in front, for images of about 32 px.
    """
    builder = models.get_model_builder(arch)
    cls = typing.get_type_hints(builder)["return"]
    _check_args(cls, builder, arch_args)
    given: dict[str, Any] = {}
    if cls is models.VisionTransformer:
        given["image_size"] = _tied_size(arch, im_sz, published)
    elif cls is models.MaxVit:
        given["input_size"] = (_tied_size(arch, im_sz, published),) * 2
    elif cls in (models.Inception3, models.GoogLeNet):
        # Their published weights want pixels in [-1, 1]; transform_input makes that of ImageNet's statistics.
        given |= {"aux_logits": False, "init_weights": True, "transform_input": published}
    net = builder(weights=None, num_classes=num_classes, **(given | arch_args))
    set_head_dropout(net, dropout)
    if small and isinstance(net, models.ResNet):
        net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    return net


def build_timm(
    name: str, num_classes: int, dropout: float, im_sz: int, arch_args: dict[str, Any], published: bool
) -> nn.Module:
    """A timm net by its own name ("resnet18", "resnet18.a1_in1k"), with published weights or without."""
    try:
        import timm
    except ImportError:
        raise UserError(f"arch: timm/{name} needs timm; install it: pip install timm") from None
    if not timm.is_model(name):
        raise UserError(f"arch: timm has no net {name!r}; {nearest(name, timm.list_models())}")
    if published and not timm.models.is_model_pretrained(name):
        raise UserError(f"pretrain: timm publishes no weights for {name}; 0 trains from scratch")
    given: dict[str, Any] = {"drop_rate": dropout, "num_classes": num_classes}
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size and config.input_size[-1] != im_sz:
        given["img_size"] = im_sz
    for key in given:
        if key in arch_args:
            raise UserError(f"arch_args: {key!r} is set by the kit (ps, n_clas, im_sz)")
    try:
        net = timm.create_model(name, pretrained=published, **given, **arch_args)
    except Exception as error:
        if not published or isinstance(error, TypeError | AssertionError):
            raise
        raise UserError(
            f"pretrain: the published weights of timm/{name} could not be read ({reason(error)}); with no "
            'network, give a local file: "pretrain": "path/to/weights.safetensors"'
        ) from None
    net.weights_report = f"timm/{name}: timm's published weights loaded, head new" if published else ""
    return net


def set_head_dropout(net: nn.Module, dropout: float) -> None:
    """Dropout before the last layer: the one right before it when there is one, else a new one."""
    leaves = [module for module in net.modules() if not list(module.children())]
    at = max(i for i, module in enumerate(leaves) if isinstance(module, nn.Linear | nn.Conv2d))
    before, last = leaves[at - 1], leaves[at]
    if isinstance(before, nn.Dropout):
        before.p = dropout
    elif isinstance(last, nn.Linear):
        last.__class__ = DropoutLinear
        last.dropout = dropout
    else:
        raise AssertionError(f"{type(net).__name__} ends in a convolution with no dropout before it")


def _check_args(cls: type[nn.Module], builder: Callable, arch_args: dict[str, Any]) -> None:
    """UserError for an argument that neither a torchvision builder nor the class behind it takes."""
    parameters = {**inspect.signature(cls).parameters, **inspect.signature(builder).parameters}
    allowed = [n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD and n not in GIVEN]
    for name in arch_args:
        if name not in allowed:
            raise UserError(f"arch_args: {cls.__name__} takes no {name!r}; {nearest(name, allowed)}")


def _tied_size(arch: str, im_sz: int, published: bool) -> int:
    """`im_sz`, unless published weights tie the net to another size."""
    if published and published_size(arch) != im_sz:
        size = published_size(arch)
        raise UserError(f"pretrain: the published weights of {arch} are for {size} px; set im_sz to {size}")
    return im_sz
