"""Image files -> RGB uint8 arrays, with defined conversions. The header is checked before the pixels are decoded.

JPEG goes through simplejpeg (pixel-identical to Pillow, several times faster), everything else through Pillow.
16-bit grey is divided by 257, transparency is laid over white, CMYK and palettes become RGB, EXIF orientation is
applied, an animation gives its first frame. Float images are refused.
"""

import contextlib
import io
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils import UserError

if TYPE_CHECKING:  # Pillow is imported on demand
    from PIL import Image

MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")
EXIF = b"Exif\0\0"  # begins the segment that holds it
ORIENTATION = 0x0112  # EXIF tag
MAX_SEGMENT = 65_536  # bytes of a JPEG segment


class ImageError(UserError):
    """An image file that cannot be used; names the file and the reason."""


def read_bytes(path: Path | str) -> bytes:
    """The bytes of a regular file. ImageError for anything else (reading a FIFO would block)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path}: not a regular file")
        data = os.read(descriptor, status.st_size)
        while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
            data += more
        return data
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def decode(data: bytes, path: Path | str) -> np.ndarray:
    """(H, W, 3) uint8 RGB. ImageError naming `path`."""
    if not data:
        raise ImageError(f"{path}: empty file")
    if data[:3] == b"\xff\xd8\xff":
        image = _decode_jpeg(data, path)
        if image is not None:
            return image
    return _decode_pillow(data, path)


def read_image(path: Path | str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file. ImageError naming it."""
    return decode(read_bytes(path), path)


def _decode_jpeg(data: bytes, path: Path | str) -> np.ndarray | None:
    """None when it is not plain RGB or grey, or simplejpeg refuses it: Pillow is tried then."""
    import simplejpeg

    try:
        height, width, colours = _jpeg_header(data)
    except ValueError:
        return None
    check_size(width, height, path)
    if colours not in ("YCbCr", "Gray"):
        return None
    try:
        image = simplejpeg.decode_jpeg(data, colorspace="RGB")  # strict: a truncated file is an error
    except ValueError:
        return None  # Pillow says what is wrong with it
    orientation = jpeg_orientation(data)
    return image if orientation == 1 else orient(image, orientation)


def _jpeg_header(data: bytes) -> tuple[int, int, str]:
    """(height, width, colour space). ValueError when simplejpeg cannot read it."""
    import simplejpeg

    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    return int(height), int(width), colours


def jpeg_orientation(data: bytes) -> int:
    """EXIF orientation 1..8 of a JPEG; 1 when it states none, or none that is defined."""
    start = data.find(EXIF)
    if start < 0:
        return 1
    from PIL import Image

    exif = Image.Exif()
    orientation = 1
    with contextlib.suppress(Exception), warnings.catch_warnings():  # of damaged EXIF, many kinds
        warnings.simplefilter("ignore")
        exif.load(data[start : start + MAX_SEGMENT])
        orientation = exif[ORIENTATION]
    return orientation if orientation in range(1, 9) else 1


def orient(image: np.ndarray, orientation: int) -> np.ndarray:
    """`image` (H, W, 3) transposed and mirrored as an EXIF orientation says."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    flip_x, flip_y = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    # A copy always: of an image that is one pixel wide, ascontiguousarray would keep the negative stride.
    return image[:: -1 if flip_y else 1, :: -1 if flip_x else 1].copy()


def check_size(width: int, height: int, path: Path | str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{path}: {width} x {height} pixels; more than {MAX_PIXELS // 10**6} million are refused")
    if width < 1 or height < 1:
        raise ImageError(f"{path}: {width} x {height} pixels")


def _decode_pillow(data: bytes, path: Path | str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not a {', '.join(FORMATS)} image") from None
    except Exception as error:
        raise _unusable(path, error) from None
    with image:
        return decode_opened(image, path)


def decode_opened(image: "Image.Image", path: Path | str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a Pillow image; its file may not have been read yet. ImageError naming `path`."""
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_size(*image.size, path)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), path)
    except ImageError:
        raise
    except Exception as error:
        raise _unusable(path, error) from None


def _unusable(path: Path | str, error: Exception) -> ImageError:
    """Decoders raise all kinds of errors; whatever it is, this file cannot be used."""
    reason = " ".join(str(error).split())[:120]
    return ImageError(f"{path}: {type(error).__name__}{': ' if reason else ''}{reason}")


def _to_rgb(image: "Image.Image", path: Path | str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a decoded image. ImageError for pixels without a defined range."""
    from PIL import Image

    if image.mode == "F":
        raise ImageError(f"{path}: float pixels have no defined range; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, as I;16 or widened to I
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ImageError(f"{path}: 32-bit pixels have no defined range; convert it to 8 or 16 bits")
        return np.repeat((grey // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def image_size(path: Path | str) -> tuple[int, int]:
    """(width, height) from the header alone, as stored (EXIF orientation not applied)."""
    data = read_bytes(path)
    if data[:3] == b"\xff\xd8\xff":
        with contextlib.suppress(ValueError):
            height, width, _ = _jpeg_header(data)
            return width, height
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Exception as error:
        raise ImageError(f"{path}: {type(error).__name__}") from None


def base_image(image: np.ndarray, size: int, mode: str) -> np.ndarray:
    """(H, W, 3) -> (size, size, 3) uint8, by antialiased bilinear resizing.

    `mode`: "crop" brings the short side to `size` and cuts the centre, to the pixels of torchvision's Resize and
    CenterCrop; "squash" ignores the proportions; "letterbox" brings the long side to `size` and fills with grey.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    if mode == "squash":
        return _resize(image, size, size)
    if mode == "letterbox":
        scale = size / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas = np.full((size, size, 3), 128, np.uint8)
        left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
        canvas[top : top + inner[1], left : left + inner[0]] = _resize(image, inner[1], inner[0])
        return canvas
    # The whole image would be tall x wide; (top, left) is the corner of its centre.
    short = min(height, width)
    tall, wide = int(size * height / short), int(size * width / short)
    top, left = round((tall - size) / 2), round((wide - size) / 2)
    if max(tall, wide) > 2 * size:  # resize the centre alone: most of the rest would be thrown away
        x, y = width / wide, height / tall
        return _resize_part(image, (left * x, top * y, (left + size) * x, (top + size) * y), size)
    return _resize(image, tall, wide)[top : top + size, left : left + size]


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) -> (height, width, 3). Within one level of Pillow's bilinear resizing, in half the time."""
    import torch
    from torch.nn.functional import interpolate

    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _resize_part(image: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """`box` (left, top, right, bottom) of (H, W, 3) -> (size, size, 3)."""
    from PIL import Image

    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box))
