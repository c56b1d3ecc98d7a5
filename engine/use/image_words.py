"""The words of a command line that name images: files, folders, patterns, and `-` for stdin. No torch."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence

from include import IMAGE_EXTENSIONS
from utils import UserError


def find_images(words: Sequence[str]) -> Iterator[str]:
    """The files that the words name, in order: files, every image below folders, patterns, and `-` for stdin.

    A pattern or a folder without any image is named, too, as a path that no file has.
    """
    for word in words:
        if word == "-":
            yield from find_images([line for line in sys.stdin.read().splitlines() if line and line != "-"])
        elif word.startswith(("http://", "https://")):
            raise UserError(f"{word}: addresses are not fetched; download the image, and give the file")
        elif os.path.isdir(word):
            yield from list(images_below(word)) or [os.path.join(word, "*")]
        elif not os.path.lexists(word) and glob.has_magic(word):
            matches = sorted(glob.glob(word, recursive=True))
            yield from [path for match in matches for path in images_at(match)] or [word]
        else:
            yield word


def images_at(path: str) -> Iterator[str]:
    return images_below(path) if os.path.isdir(path) else iter([path])


def names_nothing(path: str) -> bool:
    """True for a pattern that no file matches."""
    return glob.has_magic(path) and not os.path.lexists(path)


def images_below(folder: str) -> Iterator[str]:
    for current, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = [name for name in sorted(files) if not name.startswith(".")]
        yield from (os.path.join(current, name) for name in shown if name.lower().endswith(IMAGE_EXTENSIONS))
