"""Base images out of a cache. A block of them is compared with its digest before any of its images is used.

So opening a cache of any size takes no time, the first epoch pays for the comparison (SHA-256, about 1 GiB/s per
core), and later epochs pay nothing. An image in a damaged block is decoded from its own file again: a damaged cache
makes a run slower, never different.
"""

import hashlib
import itertools
import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from utils import num_cores

DIGEST_BYTES = 32  # of a block
BLOCK_BYTES = 64 << 10  # larger blocks would make the first batch of an epoch compare more than it uses
MAX_ROWS = 16  # images in a block
MIN_FOR_THREADS = 512  # blocks; fewer are compared faster by one thread

UNKNOWN, INTACT, DAMAGED = range(3)
DecodeAgain = Callable[[int], np.ndarray]  # row -> (S, S, 3) uint8, from the image's own file


def rows_per_block(image_bytes: int) -> int:
    """A power of two, so that the parts of a pass over the files consist of whole blocks."""
    rows = MAX_ROWS
    while rows > 1 and rows * image_bytes > BLOCK_BYTES:
        rows //= 2
    return rows


def block_digest(block: bytes | memoryview) -> bytes:
    """Of the bytes of one block."""
    return hashlib.sha256(block).digest()


class Blocks(Protocol):
    """Blocks of bytes by number."""

    def __call__(self, number: int, /) -> np.ndarray: ...


class BlockCheck:
    """Compares blocks with their digests, each once; forked processes share what is known."""

    def __init__(self, expected: np.ndarray, block: Blocks, on_damage: Callable[[], None]):
        self.expected = expected  # (M, 32) uint8
        self.block = block
        self.on_damage = on_damage  # called when the first damaged block is found
        memory = mmap.mmap(-1, max(1, len(expected)))
        self.known = np.frombuffer(memory, np.uint8)[: len(expected)]  # UNKNOWN, INTACT or DAMAGED

    def is_damaged(self, blocks: np.ndarray) -> np.ndarray:
        """(B,) block numbers -> (B,) bool."""
        known = self.known[blocks]
        if (known == UNKNOWN).any():
            self._compare(np.unique(blocks[known == UNKNOWN]))
            known = self.known[blocks]
        return known == DAMAGED

    def _compare(self, blocks: np.ndarray) -> None:
        num_threads = min(16, num_cores()) if len(blocks) >= MIN_FOR_THREADS else 1
        if num_threads > 1:
            with ThreadPoolExecutor(num_threads) as pool:  # hashing sets Python's lock free
                digests = b"".join(pool.map(self._digests, np.array_split(blocks, num_threads)))
        else:
            digests = self._digests(blocks)
        computed = np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)
        is_bad = (computed != self.expected[blocks]).any(axis=1)
        is_first = is_bad.any() and not (self.known == DAMAGED).any()
        self.known[blocks] = np.where(is_bad, DAMAGED, INTACT)
        if is_first:
            self.on_damage()

    def _digests(self, blocks: np.ndarray) -> bytes:
        return b"".join(block_digest(self.block(number).data) for number in blocks.tolist())


class CheckedImages:
    """Decoded images (N, S, S, 3) in a file; `array` may be used directly for rows that are intact."""

    def __init__(
        self, array: np.ndarray, digests: np.ndarray, decode_again: DecodeAgain, on_damage: Callable[[], None]
    ):
        self.array = array
        self.decode_again = decode_again
        self.num_rows = rows_per_block(array[0].nbytes)
        self.check = BlockCheck(digests, self._block, on_damage)

    def _block(self, number: int) -> np.ndarray:
        return self.array[number * self.num_rows : (number + 1) * self.num_rows]

    def are_intact(self, rows: np.ndarray) -> bool:
        """Whether all of `rows` (B,) may be read from `array`."""
        return not self.check.is_damaged(rows // self.num_rows).any()

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(B,) rows -> (B, S, S, 3), a copy."""
        images = self.array[rows]
        for number in np.flatnonzero(self.check.is_damaged(rows // self.num_rows)).tolist():
            images[number] = self.decode_again(int(rows[number]))
        return images


class CheckedJpegs:
    """Base images as JPEGs in one file, decoded each time; each is a block of its own."""

    def __init__(
        self,
        data: np.ndarray,
        offsets: np.ndarray,
        size: int,
        digests: np.ndarray,
        encode_again: Callable[[int], bytes],
        on_damage: Callable[[], None],
    ):
        self.data = data  # (number of bytes,) uint8
        self.offsets = offsets  # (N + 1,): where each begins
        self.size = size  # S
        self.encode_again = encode_again  # row -> its JPEG, from the image's own file
        self.check = BlockCheck(digests, self._block, on_damage)

    def _block(self, number: int) -> np.ndarray:
        return self.data[self.offsets[number] : self.offsets[number + 1]]

    def read(self, row: int, out: np.ndarray) -> None:
        """Image `row` into `out` (S, S, 3) uint8."""
        import simplejpeg

        is_damaged = self.check.is_damaged(np.array([row]))[0]
        encoded = self.encode_again(row) if is_damaged else self._block(row)
        simplejpeg.decode_jpeg(encoded, colorspace="RGB", buffer=out)


def digests_of_blocks(images: np.ndarray) -> list[bytes]:
    """The digest of each block of `images` (B, S, S, 3), which begin where a block does."""
    bounds = [*range(0, len(images), rows_per_block(images[0].nbytes)), len(images)]
    return [block_digest(images[start:end].data) for start, end in itertools.pairwise(bounds)]
