"""A net from its name and arguments: the kit's own, a file's, torchvision's or timm's. Tried before it is used."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from model.nets.published import DEFAULT, Fetches, describe_error, timm_origin, torchvision_origin
from model.nets.spec import NetSpec
from utils import UserError, check_kwargs, is_out_of_memory, key64, load_reference, nearest, read_tensors


def build_net(spec: NetSpec, registry: Mapping[str, Callable[..., nn.Module]], seed: int) -> nn.Module:
    """The net, initialised as a function of `seed` alone. Weights are not loaded yet.

    UserError: an unknown name, or arguments that the constructor refuses.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key64(seed, "init"))
        try:
            if spec.arch in registry:
                return _construct(registry[spec.arch], spec)
            if spec.is_own:
                return _construct(load_reference(spec.arch, spec.folder), spec)
            return _build_library_net(spec, registry)
        except UserError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"arch: {spec.arch} cannot be built with arch_args {spec.arch_args}: {describe_error(error)}"
            ) from error


def _construct(constructor: object, spec: NetSpec) -> nn.Module:
    """A net of the registry or of a file, from its constructor."""
    if not callable(constructor):
        raise UserError(f"arch: {spec.arch} is a {type(constructor).__name__}, not a net's class")
    if spec.published:
        raise UserError(f"pretrain: {spec.arch} has no published weights; give a weights file, or 0")
    given = _arguments_of_the_kit(constructor, spec)
    check_kwargs(constructor, spec.arch_args, "arch_args", skip=given)
    net = constructor(**spec.arch_args, **given)
    if not isinstance(net, nn.Module):
        raise UserError(f"arch: {spec.arch} gave a {type(net).__name__}, not a torch.nn.Module")
    return net


def _arguments_of_the_kit(constructor: Callable[..., object], spec: NetSpec) -> dict[str, object]:
    """`num_classes` always; `dropout` and `im_sz` when the constructor takes them."""
    accepted = inspect.signature(constructor).parameters
    if spec.dropout and "dropout" not in accepted:
        raise UserError(f"ps: {spec.arch} takes no `dropout`; set ps to 0, or give its constructor that argument")
    given: dict[str, object] = {"num_classes": spec.num_classes, "dropout": spec.dropout, "im_sz": spec.im_sz}
    return {key: value for key, value in given.items() if key == "num_classes" or key in accepted}


def _build_library_net(spec: NetSpec, registry: Mapping[str, Callable[..., nn.Module]]) -> nn.Module:
    from model.nets import backbones  # torchvision takes two seconds to import

    if spec.arch.startswith("timm/"):
        return backbones.build_timm(spec)
    names = backbones.list_torchvision_nets()
    if spec.arch not in names:
        raise UserError(f"arch: unknown net {spec.arch!r}; {nearest(spec.arch, [*registry, *names])}")
    return backbones.build_torchvision(spec)


def fetch_published(spec: NetSpec, source: Fetches | None, is_raw: bool) -> tuple[dict[str, Tensor], Path, str]:
    """(tensors, their file, its name) of the published weights of a library's net. UserError when they cannot be had.

    `is_raw`: as they are in the file, though timm would not accept them for this net.
    """
    is_timm = spec.arch.startswith("timm/")
    tag = spec.published or DEFAULT
    origin = timm_origin(spec.arch, tag) if is_timm else torchvision_origin(spec.arch, tag)
    if source is None:
        raise UserError(f"pretrain: nothing here fetches {origin.name}; give a weights file")
    file = source.fetch(origin)
    if is_raw or not is_timm:
        return read_tensors(file), file, origin.name
    from model.nets import backbones  # torchvision takes two seconds to import

    return backbones.read_timm_tensors(spec, file), file, origin.name


@torch.no_grad()
def check_output(net: nn.Module, arch: str, num_classes: int, im_sz: int) -> None:
    """One forward pass of two black images. UserError when the net cannot take them, or gives no logits (2, K)."""
    if any(parameter.is_meta for parameter in net.parameters()):
        return
    try:
        logits = net.eval()(torch.zeros(2, 3, im_sz, im_sz))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"arch: {arch} cannot take images of {im_sz} px: {describe_error(error)}") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        given = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"arch: {arch} gave {given} for 2 images; logits (2, {num_classes}) are expected")
