"""Items -> files: linked where the file system allows it, copied, shrunk, or written as PNG."""

import os
import shutil
from pathlib import Path

from model.images.build.items import Item
from utils import UserError


def write_items(items: list[Item], target: Path, size: int | None) -> dict[str, dict[str, int]]:
    """Write every image to `target`/SPLIT/CLASS -> {split: {class: number of images}}. UserError without images."""
    from tqdm import tqdm

    if not items:
        raise UserError("the source holds no images that can be read")
    counts: dict[str, dict[str, int]] = {}
    for item in tqdm(items, desc="building", unit="image", leave=False, disable=None):
        classes = counts.setdefault(item.split, {})
        folder = target / item.split / item.label
        if item.label not in classes:
            folder.mkdir(parents=True, exist_ok=True)
        write_image(item, folder, size)
        classes[item.label] = classes.get(item.label, 0) + 1
    return counts


def write_image(item: Item, folder: Path, size: int | None) -> None:
    """Link, shrink or write one image; a name that is taken gets a number."""
    path = _free_path(folder / item.name)
    if not isinstance(item.source, Path):
        item.source.save(path, "PNG")
        return
    if size:
        shrink(item.source, path, size)
        return
    try:
        os.link(item.source, path)
    except OSError:
        shutil.copyfile(item.source, path)


def _free_path(path: Path) -> Path:
    free, number = path, 2
    while free.exists():
        free = path.with_name(f"{path.stem}_{number}{path.suffix}")
        number += 1
    return free


def shrink(source: Path, path: Path, size: int) -> None:
    """Reduce the short side of an image to `size` px if it is longer; smaller images are copied as they are."""
    from PIL import Image

    from model.images.decode import read_image

    image = Image.fromarray(read_image(source))
    if min(image.size) <= size:
        shutil.copyfile(source, path)
        return
    scale = size / min(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        image.save(path, "JPEG", quality=95)
    else:
        image.save(path.with_suffix(".png"), "PNG")
