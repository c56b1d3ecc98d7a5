"""Sheets of images with captions, drawn by Pillow. The same input gives the same bytes."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from report.figures import shorten
from utils import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from PIL import ImageFont
    from torch import Tensor

TILE = 128  # pixels, of an image on the sheet
GAP = 10  # pixels, between images
LINE_HEIGHT = 15  # pixels, of a caption's line
FONT_SIZE = 11


class ImageBatches(Protocol):
    """What a sheet needs of a data loader."""

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def pinned(self) -> Mapping[str, Any]:
        """With "mean" and "std", the normalisation of the images."""
        ...

    def batches(self, epoch: int, /) -> Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(images, labels, positions, weights) of each batch."""
        ...


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """matplotlib's DejaVu Sans, found without importing matplotlib; else Pillow's own."""
    from PIL import ImageFont

    spec = importlib.util.find_spec("matplotlib")
    path = Path(spec.origin or "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if spec else None
    if path and path.is_file():
        return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def save_sheet(path: Path, images: np.ndarray, captions: Sequence[Sequence[str]], columns: int = 8) -> None:
    """images (N, H, W, 3) uint8 in rows of `columns`, each above the lines of its caption."""
    from PIL import Image, ImageDraw

    # The size of the sheet.
    columns = max(1, min(columns, len(images)))
    num_rows = -(-len(images) // columns)
    num_lines = max((len(caption) for caption in captions), default=0)
    height = TILE + num_lines * LINE_HEIGHT + 6
    sheet = Image.new("RGB", (GAP + columns * (TILE + GAP), GAP + num_rows * (height + GAP)), "white")

    # Each image in a frame, with its caption.
    pen = ImageDraw.Draw(sheet)
    font = _font(FONT_SIZE)
    for number, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        left = GAP + number % columns * (TILE + GAP)
        top = GAP + number // columns * (height + GAP)
        image = Image.fromarray(pixels)
        image = image.resize((TILE, TILE), Image.Resampling.NEAREST if image.width <= TILE else Image.Resampling.BOX)
        sheet.paste(image, (left, top))
        pen.rectangle((left - 1, top - 1, left + TILE, top + TILE), outline="#d5d8dc")
        for row, text in enumerate(caption):
            colour = "#222222" if row == 0 else "#666666"
            pen.text((left, top + TILE + 3 + row * LINE_HEIGHT), _shorten_to_width(text, font), fill=colour, font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def _shorten_to_width(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """`text`, its middle left out until it is at most as wide as an image."""
    length = min(len(text), 60)
    text = shorten(text, 60)
    while length > 2 and font.getlength(text) > TILE:
        length -= 1
        text = shorten(text, length)
    return text


def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(N, 3, H, W) normalised tensor on any device -> (N, H, W, 3) uint8."""
    import numpy as np

    array = images.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    array = array * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return (array * 255).round().clip(0, 255).astype(np.uint8)


def save_batch_sheet(path: Path, loader: ImageBatches, count: int = 32) -> None:
    """The first training images as the net sees them, with their (possibly mixed) classes."""
    # One batch; the generator is closed so that its threads end.
    batches = iter(loader.batches(0))
    images, labels, _, weights = next(batches)
    if isinstance(batches, Generator):
        batches.close()

    # Padding has weight 0 and is not shown.
    is_shown = (weights > 0).nonzero().flatten()[:count]
    captions = [describe_label(label, loader.classes) for label in labels[is_shown].cpu()]
    save_sheet(path, to_pixels(images[is_shown], loader.pinned["mean"], loader.pinned["std"]), captions)


def describe_label(label: Tensor, classes: Sequence[str]) -> list[str]:
    """["cat"], or ["cat 0.70", "dog 0.30"] for a mixed label."""
    if label.ndim == 0:
        return [str(classes[int(label)])]
    values, numbers = label.topk(min(2, len(classes)))
    shares = [(classes[int(n)], float(v)) for v, n in zip(values, numbers, strict=True) if v > 0.005]
    if len(shares) == 1:
        return [shares[0][0]]
    return [f"{shorten(name, 14)} {share:.2f}" for name, share in shares]
