"""Nets: images (B, 3, H, W) -> logits (B, K).

To add one: write the class and add one line to NETS. Its constructor takes `num_classes`, `dropout` (the probability
before the last layer: `ps` of params.json), `im_sz` if it needs the image size, and keyword arguments of its own, which
are `arch_args`. Or keep the class in the experiment folder and name it "file.py:Name". A net may define
`layer_groups()` (lists of parameters, earliest layers first) and `predict(images)` (probabilities, if they are not the
softmax of its logits).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, max_pool2d

from model.nets.build import NetSpec, build_net, check_output, fetch_published
from model.nets.published import Fetches, published_tag
from model.nets.weights import Fit, LoadReport, clean_names, load_pretrained, load_tensors
from model.pixels.progressive import list_training_sizes
from params import Params, is_weights_tag
from utils import UserError, read_tensors

SMALL_IMAGE = 64  # px; up to this size ResNets get the stem for small images
LIBRARY_SIZE = 224  # px; torchvision's and timm's nets are known to take images of this size and larger


def conv_bn_relu(num_in: int, num_out: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    conv = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(num_out), nn.ReLU(inplace=True))


class SimpleCNN(nn.Module):
    """Three blocks of two 3x3 convolutions and a max pool, of 1, 2 and 4 times `n_filters` filters; mean; linear."""

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
        features = self.blocks(x)  # (B, 3, H, W) -> (B, C, H / 8, W / 8)
        return self.head(features.mean(dim=(2, 3)))  # (B, C) -> (B, K)


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al., Gradient-based learning applied to document recognition, 1998), with ReLU.

    An adaptive pool gives its linear layers maps of 5x5, whatever the image size.
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
        maps = self.features(x)  # (B, 3, H, W) -> (B, C, 5, 5)
        return self.head(self.hidden(maps.flatten(1)))  # -> (B, K)


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def patch_filters(size: int) -> Tensor:
    """(3 * size^2, 3, size, size): an orthonormal basis of square RGB patches: DCT-II in opponent colours.

    Close to the principal components of patches of natural images, so that its coefficients are nearly uncorrelated,
    but the same for every data set.
    """
    steps = torch.arange(size)
    cosines = torch.cos(torch.pi / size * torch.outer(steps, steps + 0.5))  # (frequency, place)
    colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    cosines = cosines / cosines.norm(dim=1, keepdim=True)
    colours = colours / colours.norm(dim=1, keepdim=True)
    return torch.einsum("ck,uy,vx->cuvkyx", colours, cosines, cosines).reshape(-1, 3, size, size)


class PatchStem(nn.Module):
    """Each 2x2 patch in a fixed basis: coefficients of unit variance and their negatives, 24 channels; GELU."""

    filters: Tensor  # (12, 3, 2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", patch_filters(2))
        self.norm = nn.BatchNorm2d(12, affine=False)
        self.num_channels = 24

    def forward(self, images: Tensor) -> Tensor:
        coefficients = self.norm(conv2d(images, self.filters))  # (B, 12, H - 1, W - 1)
        return gelu(torch.cat([coefficients, -coefficients], dim=1))


class ConvNormAct(nn.Module):
    """3x3 convolution, initialised as the identity; 2x2 max pool if `halve`; batch norm without gain; GELU."""

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
            x = max_pool2d(x, 2)  # before the norm, for which this leaves a quarter of the work
        return gelu(self.norm(x))


class ResNet9(nn.Module):
    """A small, fast residual net for 32 px images: a fixed stem, seven 3x3 convolutions and a linear layer.

    The shape is David Page's ("How to train your ResNet", 2018). The fixed stem, convolutions initialised as the
    identity, pooling before the norm, norms without gain and small logits (`scale`) follow Keller Jordan's airbench
    (arXiv:2404.00498): they need fewer epochs, so that a CPU trains it in minutes.
    """

    def __init__(
        self, num_classes: int, dropout: float = 0.0, widths: Sequence[int] = (64, 256, 256), scale: float = 1 / 9
    ):
        super().__init__()
        a, b, c = widths
        self.stem = PatchStem()
        self.scale = scale
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

    The image size must be a multiple of 8. It gives logits, the template log-probabilities; the loss is the same.
    """

    def __init__(self, num_classes: int, dropout: float = 0.0, im_sz: int = 64, num_channels: int = 32):
        super().__init__()
        if im_sz % 8:
            raise ValueError(f"im_sz {im_sz} is not a multiple of 8")
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
        maps = self.features(x)  # (B, 3, S, S) -> (B, C, S / 8, S / 8)
        return self.head(self.hidden(maps.flatten(1)))  # -> (B, K)


NETS: dict[str, Callable[..., nn.Module]] = {
    "simple_cnn": SimpleCNN,
    "lenet": LeNet,
    "resnet9": ResNet9,
    "sign_net": SignNet,
}


# --- by name ----------------------------------------------------------------------------------------


def make_net(
    params: Params,
    num_classes: int,
    weights: Mapping[str, Tensor] | None = None,
    file: Path | None = None,
    published: Fetches | None = None,
) -> tuple[nn.Module, LoadReport | None]:
    """The net that `params` names, in train mode, and which weights it starts from (None: random ones, or `weights`).

    Its initial weights are a function of params.seed alone. `weights`: the tensors of a net that was trained with
    these params (evaluate, predict, resume); they must fit exactly, and `pretrain` is then not looked at. `file`: to
    start from, in place of what `pretrain` names. `published`: gets the files of published weights.
    A ResNet gets the small-image stem (3x3, stride 1, no max pool) at im_sz <= 64 px, unless the weights it takes were
    trained with the 7x7 stem, as all published ones were.
    UserError: unknown arch, arch_args that its constructor refuses, weights or an image size that do not fit.
    """
    im_sz = params.im_sz or LIBRARY_SIZE
    # The weights come first: they decide the stem.
    file = None if weights is not None else file or _find_file(params)
    tensors = read_tensors(file) if file else weights
    tensors = None if tensors is None else clean_names(tensors)
    tag = published_tag(params) if tensors is None else None
    stem = None if tensors is None else tensors.get("conv1.weight")  # (C, 3, h, w)
    is_small = im_sz <= SMALL_IMAGE and not tag and (stem is None or stem.shape[-1] == 3)
    # Build it, with random weights.
    spec = NetSpec(
        arch=params.arch,
        arch_args=dict(params.arch_args),
        num_classes=num_classes,
        dropout=params.ps,
        im_sz=im_sz,
        folder=Path(params.folder),
        published=tag,
        small_stem=is_small,
    )
    net = build_net(spec, NETS, params.seed)
    # Try it with every size that training images will have.
    is_library = not (params.arch in NETS or spec.is_own)
    for side in list_training_sizes(params, im_sz):
        if not (is_library and side == im_sz >= LIBRARY_SIZE):
            check_output(net, params.arch, num_classes, side)
    # Load the weights: of this net, or of one that may have had another head.
    if weights is not None and tensors is not None:
        report = load_tensors(net, tensors, "weights")
        if not report.is_complete:
            raise UserError(f"these weights are not of the net that params.json describes: {report}")
        return net.train(), None
    if tag:
        tensors, file, source = fetch_published(spec, published, bool(params.pretrain_partial))
    else:
        source = str(file)
    if tensors is None or file is None:
        return net.train(), None
    fit = Fit(params.arch, num_classes, bool(params.pretrain_partial), NETS)
    return net.train(), load_pretrained(net, tensors, source, fit, file)


def _find_file(params: Params) -> Path | None:
    """The weights file that `pretrain` names; None when it names no file."""
    if not isinstance(params.pretrain, str) or is_weights_tag(params.pretrain):
        return None
    return Path(params.folder) / Path(params.pretrain).expanduser()
