"""A net of this experiment's own: a small ConvMixer ("Patches Are All You Need?", arXiv:2201.09792)."""

from torch import Tensor, nn


class PatchMixer(nn.Module):
    """images (B, 3, H, W) -> logits (B, K). Patches of 4 px, mixed over space, then over channels."""

    def __init__(self, num_classes: int, dropout: float = 0.0, width: int = 64, depth: int = 4):
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(3, width, 4, stride=4), nn.GELU(), nn.BatchNorm2d(width))
        self.space = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 5, groups=width, padding=2), nn.GELU(), nn.BatchNorm2d(width))
            for _ in range(depth)
        )
        self.channels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width)) for _ in range(depth)
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(width, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images)  # (B, C, H/4, W/4)
        for space, channels in zip(self.space, self.channels, strict=True):
            x = channels(x + space(x))
        return self.head(x)
