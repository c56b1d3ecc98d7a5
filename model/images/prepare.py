"""Images as people have them (files, bytes, Pillow images, arrays) -> the batches that a trained net takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from model.images.decode import ImageError, base_image, decode, decode_opened, read_image
from model.images.image_folder import base_size
from model.pixels.normalise import Normalise

if TYPE_CHECKING:  # Pillow is imported on demand
    from PIL import Image

    AnyImage: TypeAlias = str | os.PathLike[str] | bytes | np.ndarray | Image.Image


def to_rgb(image: AnyImage) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a path, the bytes of a file, a Pillow image or a uint8 array (H, W), (H, W, 1, 3 or 4).

    ImageError for what cannot be read, or is nothing of these.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return decode(bytes(image), "these bytes")
    from PIL import Image

    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ImageError(f"an array of {image.dtype} {image.shape} given; possible: uint8 (H, W) or (H, W, 3)")
        if image.ndim == 3 and image.shape[2] == 3:
            return np.ascontiguousarray(image)
        try:
            image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
        except TypeError:
            raise ImageError(f"an array of shape {image.shape} given; possible: (H, W) or (H, W, 3)") from None
    if isinstance(image, Image.Image):
        return decode_opened(image, "this image")
    raise ImageError(f"{type(image).__name__} given; possible: a path, bytes, a Pillow image or a uint8 array")


# Of one batch: 64 images for a net that takes 224 px, 256 for one that takes at most 112. Fewer small images are slow.
MOST_PIXELS = 2**22
MOST_IMAGES = 256


class Preparation:
    """Decoded images -> what the net takes, as the weights' metadata say: size, resizing and normalisation."""

    def __init__(self, kit: Mapping[str, Any], device: str):
        self.base = base_size(kit["im_sz"])
        self.batch_size = min(max(MOST_PIXELS // self.base**2, 1), MOST_IMAGES)
        self.resize: str = kit["resize"]
        self.device = device
        normalisation = kit["normalisation"]
        self._normalise = Normalise(kit["im_sz"], normalisation["mean"], normalisation["std"], device)

    def read(self, image: AnyImage) -> np.ndarray:
        """(base, base, 3) uint8 of whatever to_rgb takes. ImageError for what cannot be read."""
        return self.base_image(to_rgb(image))

    def base_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) -> (base, base, 3) uint8."""
        return base_image(image, self.base, self.resize)

    def batch(self, base_images: Sequence[np.ndarray]) -> Tensor:
        """N times (base, base, 3) uint8 -> (N, 3, im_sz, im_sz) float32 on the device."""
        return self._normalise(torch.from_numpy(np.stack(base_images)).to(self.device))
