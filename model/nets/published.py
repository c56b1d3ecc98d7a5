"""Published weights by name: which ones torchvision and timm have, and where. Fetching them is left to the caller."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from include import IMAGENET_MEAN, IMAGENET_STD
from params import Params
from params.paths import is_weights_tag
from utils import UserError, nearest

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

# torchvision's nets whose published weights want pixels in [-1, 1]; its own `transform_input` does the same in the net.
SIGNED = ("googlenet", "inception_v3")
DEFAULT = "DEFAULT"  # the weights that the library itself prefers


@dataclass(frozen=True)
class Origin:
    """Where published weights are."""

    name: str  # ResNet18_Weights.IMAGENET1K_V1, timm_resnet18.a1_in1k
    url: str  # of the file; "" where `repository` says it
    repository: str = ""  # of Hugging Face's hub


class Fetches(Protocol):
    """Gets the files of published weights."""

    def fetch(self, origin: Origin, /) -> Path:
        """The file. UserError when it can be had from nowhere."""
        ...


def published_tag(params: Params) -> str | None:
    """Which published weights `pretrain` asks for; None when it asks for none."""
    if isinstance(params.pretrain, str) and is_weights_tag(params.pretrain):
        return params.pretrain
    return DEFAULT if params.pretrain == 1 else None


def torchvision_weights(arch: str, tag: str) -> "WeightsEnum":
    """torchvision's weights of `arch` that `tag` names: DEFAULT, IMAGENET1K_V2, ResNet50_Weights.IMAGENET1K_V2."""
    from torchvision.models import get_model_weights  # torchvision takes two seconds to import

    all_weights = get_model_weights(arch)
    owner, _, name = tag.rpartition(".")
    if owner in ("", all_weights.__name__) and name in all_weights.__members__:
        return all_weights[name]
    possible = ", ".join(weights.name for weights in all_weights)
    folder = f"; a folder is written ./{tag}" if not owner else ""
    raise UserError(f"pretrain: {tag!r} given; {arch} has the published weights {possible}{folder}")


def published_size(arch: str, tag: str) -> int:
    """The smallest image size in px that torchvision's weights take."""
    return torchvision_weights(arch, tag).meta["min_size"][0]


def timm_name(arch: str, tag: str | None) -> str:
    """timm's name of a net and of its weights: "resnet18.a1_in1k" of ("timm/resnet18", "a1_in1k").

    UserError: a net that timm does not have, weights that it does not publish.
    """
    import timm

    name = arch.removeprefix("timm/")
    base, _, stated = name.partition(".")
    if not timm.is_model(name):
        raise UserError(f"arch: timm has no net {name!r}; {nearest(name, timm.list_models())}")
    if tag is None:
        return name
    if tag == DEFAULT and timm.models.is_model_pretrained(name):
        return name
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    if not tags:
        raise UserError(f"pretrain: timm publishes no weights for {name}; 0 trains from scratch")
    if tag not in tags or stated not in ("", tag):
        also = f", and arch says {stated}" if stated and tag in tags else f"; a folder is written ./{tag}"
        raise UserError(f"pretrain: {tag!r} given{also}; timm has the weights {', '.join(tags)} of {base}")
    return f"{base}.{tag}"


def published_normalisation(arch: str, tag: str) -> tuple[list[float], list[float]]:
    """(mean, std) per channel of the pixels that published weights were trained with: ImageNet's for most."""
    if arch in SIGNED:
        return [0.5] * 3, [0.5] * 3
    if arch.startswith("timm/") and importlib.util.find_spec("timm"):  # without timm, building the net says so
        import timm

        config = timm.get_pretrained_cfg(timm_name(arch, tag))
        assert config is not None  # timm_name has seen to it
        return list(config.mean), list(config.std)
    return list(IMAGENET_MEAN), list(IMAGENET_STD)


def torchvision_origin(arch: str, tag: str) -> Origin:
    weights = torchvision_weights(arch, tag)
    return Origin(str(weights), weights.url)


def timm_origin(arch: str, tag: str) -> Origin:
    import timm

    name = timm_name(arch, tag)
    config = timm.get_pretrained_cfg(name)
    assert config is not None  # timm_name has seen to it
    label = f"timm_{name.partition('.')[0]}.{config.tag}"
    return Origin(label, "", config.hf_hub_id) if config.hf_hub_id else Origin(label, str(config.url))


def describe_error(error: Exception) -> str:
    """Type and first line of an exception."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__
