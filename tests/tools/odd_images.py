"""Image files as people have them: grey, CMYK, palette, transparent, 16-bit, rotated by EXIF, tiny, panoramas."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((1, 1), (2, 3), (31, 33), (640, 480), (300, 40), (37, 700))  # (width, height)


def write_odd_images(folder: Path, seed: int = 0) -> list[Path]:
    """60 files of ten kinds, smooth pictures with some noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for number, (width, height) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (max(1, height // 16), max(1, width // 16), 4), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse, "RGBA").resize((width, height), Image.Resampling.BICUBIC)).astype(
            int
        )
        noisy = (smooth + rng.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
        rgba = Image.fromarray(noisy, "RGBA")
        rgb = Image.fromarray(noisy[..., :3].copy())
        for kind, name, image, options in _kinds(rgb, rgba, noisy):
            path = folder / f"{number}_{kind}.{name}"
            image.save(path, **options)
            paths.append(path)
    return paths


def _kinds(rgb: Image.Image, rgba: Image.Image, pixels: np.ndarray):
    """(kind, extension, image, options of save) of each kind."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    mirrored = Image.Exif()
    mirrored[0x0112] = 4
    depth16 = Image.fromarray((pixels[..., 0].astype(np.uint16) * 257) + 13)
    return [
        ("grey", "png", rgb.convert("L"), {}),
        ("grey", "jpg", rgb.convert("L"), {"quality": 95}),
        ("cmyk", "jpg", rgb.convert("CMYK"), {"quality": 95}),
        ("rotated", "jpg", rgb, {"exif": exif, "quality": 95}),
        ("mirrored", "jpg", rgb, {"exif": mirrored, "quality": 95}),
        ("deep", "png", depth16, {}),
        ("palette", "png", rgb.convert("P", palette=Image.Palette.ADAPTIVE), {}),
        ("transparent", "png", rgba, {}),
        ("grey_alpha", "png", rgba.convert("LA"), {}),
        ("bilevel", "tif", rgb.convert("1"), {}),
    ]
