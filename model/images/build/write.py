"""Items -> files: shared with the source where the file system allows it, copied, shrunk, or written as PNG."""

import contextlib
import errno
import fcntl
import os
import shutil
import sys
from pathlib import Path

from model.images.build.items import Item
from utils import UserError

FICLONE = 0x40049409  # of linux/fs.h: the blocks of one file as another's, each written on its own from then on


class Writer:
    """Writes single images. Files are cloned where the file system can do that (Btrfs, XFS), else hard links."""

    def __init__(self, size: int | None, copies: bool = False):
        self.size = size  # pixels of the short side at most
        self.copies = copies  # no hard links
        self.can_clone = sys.platform == "linux"
        self.num_links = 0  # images that are hard links

    def write(self, item: Item, folder: Path) -> Path:
        """Share, shrink or write one image -> its file; a name that is taken gets a number."""
        path = _free_path(folder / item.name)
        if not isinstance(item.source, Path):
            item.source.save(path, "PNG")
        elif self.size:
            return shrink(item.source, path, self.size)
        else:
            self._share(Path(os.path.realpath(item.source)), path)  # a link would be linked as a link
        return path

    def _share(self, source: Path, path: Path) -> None:
        if self.can_clone:
            self.can_clone = clone(source, path)
            if self.can_clone:
                return
        if not self.copies:
            with contextlib.suppress(OSError):  # another disk, or too many links
                os.link(source, path)
                self.num_links += 1
                return
        shutil.copyfile(source, path)


def clone(source: Path, path: Path) -> bool:
    """Make `path` a clone of `source` (a reflink). False where the file system has none; then there is no `path`."""
    with open(source, "rb") as original, open(path, "xb") as made:
        try:
            fcntl.ioctl(made.fileno(), FICLONE, original.fileno())
            return True
        except OSError as error:
            os.unlink(path)
            if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
                raise
            return False


def write_items(items: list[Item], target: Path, writer: Writer) -> dict[str, dict[str, int]]:
    """Write every image to `target`/SPLIT/CLASS -> {split: {class: number of images}}. UserError without images."""
    from tqdm import tqdm

    if not items:
        raise UserError("the source holds no images that can be read")
    counts: dict[str, dict[str, int]] = {}
    for item in tqdm(items, desc="building", unit="image", leave=False, disable=None):
        classes = counts.setdefault(item.split, {})
        folder = target / item.split / (item.folder or item.label)
        if item.label not in classes:
            folder.mkdir(parents=True, exist_ok=True)
        item.path = writer.write(item, folder).relative_to(target).as_posix()
        classes[item.label] = classes.get(item.label, 0) + 1
    return counts


def _free_path(path: Path) -> Path:
    free, number = path, 2
    while os.path.lexists(free):
        free = path.with_name(f"{path.stem}_{number}{path.suffix}")
        number += 1
    return free


def shrink(source: Path, path: Path, size: int) -> Path:
    """Reduce the short side of an image to `size` px if it is longer; smaller images are copied as they are.

    Returns the file that was written: a PNG unless the image is a JPEG or was copied.
    """
    from PIL import Image

    from model.images.decode import read_image

    image = Image.fromarray(read_image(source))
    if min(image.size) <= size:
        shutil.copyfile(source, path)
        return path
    scale = size / min(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        image.save(path, "JPEG", quality=95)
        return path
    path = path.with_suffix(".png")
    image.save(path, "PNG")
    return path
