"""A net that learns CIFAR-10 in minutes on a CPU, after Keller Jordan's airbench (arXiv:2404.00498)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, max_pool2d


class Whiten(nn.Module):
    """Patches of 2x2 pixels as uncorrelated numbers of unit variance, and their negatives: 24 channels.

    The filters are the scaled eigenvectors of the patches' covariance in the first batch that is trained with;
    they stay as they are, and a bias is learned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.zeros(12, 3, 2, 2))
        self.register_buffer("is_ready", torch.zeros((), dtype=torch.bool))
        self.bias = nn.Parameter(torch.zeros(24))
        self.has_looked = False  # so that no later step waits to read `is_ready`

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        patches = images.float().unfold(2, 2, 2).unfold(3, 2, 2)  # (B, 3, H/2, W/2, 2, 2)
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        with torch.autocast(images.device.type, enabled=False):
            values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        self.filters.copy_((vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2))
        self.is_ready.fill_(True)

    def forward(self, images: Tensor) -> Tensor:
        if self.training and not self.has_looked:
            self.has_looked = True
            if not self.is_ready:
                self.fit(images)
        return gelu(conv2d(images, torch.cat([self.filters, -self.filters]), self.bias))


class ConvNorm(nn.Module):
    """3x3 convolution that begins as the identity, max pool where it halves, batch norm without gain, GELU."""

    def __init__(self, num_in: int, num_out: int, halve: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        nn.init.dirac_(self.conv.weight[: min(num_in, num_out)].data)
        self.norm, self.halve = nn.BatchNorm2d(num_out, momentum=0.4), halve
        self.norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return gelu(self.norm(max_pool2d(x, 2) if self.halve else x))


class SpeedNet(nn.Module):
    """images (B, 3, H, W) -> logits (B, K): whitened patches, three halving blocks of two convolutions, linear."""

    def __init__(
        self, num_classes: int, dropout: float = 0.0, widths: tuple[int, ...] = (64, 256, 256), scale: float = 1 / 9
    ):
        super().__init__()
        self.stem, self.scale = Whiten(), scale
        self.blocks = nn.Sequential()
        for num_in, num_out in zip([24, *widths], widths, strict=False):
            self.blocks.append(nn.Sequential(ConvNorm(num_in, num_out, halve=True), ConvNorm(num_out, num_out)))
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(widths[-1], num_classes, bias=False)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        return [list(part.parameters()) for part in (self.stem, self.blocks, self.head)]

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.stem(images)).amax(dim=(2, 3))  # (B, C)
        return self.head(self.dropout(x)) * self.scale
