"""Millions of file names in little memory."""

import operator
import os
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

BLOCK = 65_536  # names per block; part of the definition of a fingerprint


def to_nfc(name: str) -> str:
    """`name` in Unicode form NFC: file systems compose accents in different ways."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class Paths(Sequence[str]):
    """File names as one string of bytes and the offset of each: 10 bytes per name besides its own bytes.

    Looks like a list of str. A slice, or an array of positions, gives Paths that share the names. A list of
    100 million str would take some 9 GB, and forked workers would copy it by merely reading it (reference counts).
    """

    def __init__(self, names: bytes | bytearray, starts: np.ndarray, lengths: np.ndarray):
        """`names` as os.fsencode gives them; `starts` (N,) int64 and `lengths` (N,) uint16 in bytes."""
        self.names = names
        self.starts = starts
        self.lengths = lengths

    @classmethod
    def from_lengths(cls, names: bytes | bytearray, lengths: np.ndarray | array) -> "Paths":
        """Names that follow each other in `names`, of `lengths` (N,) uint16 bytes."""
        sizes = np.asarray(lengths, np.uint16)
        starts = np.cumsum(sizes, dtype=np.int64)
        starts -= sizes
        return cls(names, starts, sizes)

    @classmethod
    def of(cls, paths: Iterable[str]) -> "Paths":
        encoded = [os.fsencode(path) for path in paths]
        return cls.from_lengths(b"".join(encoded), array("H", map(len, encoded)))

    def __add__(self, other: "Paths") -> "Paths":
        """These names, then the others; names that both share are not copied."""
        is_shared = self.names is other.names
        names = self.names if is_shared else b"".join([self.names, other.names])
        shift = 0 if is_shared else len(self.names)
        starts = np.concatenate([self.starts, other.starts + shift])
        return Paths(names, starts, np.concatenate([self.lengths, other.lengths]))

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: "slice | np.ndarray") -> "Paths": ...
    def __getitem__(self, key: "int | slice | np.ndarray") -> "str | Paths":
        if isinstance(key, slice | np.ndarray):
            return Paths(self.names, self.starts[key], self.lengths[key])
        position = operator.index(key)
        start = int(self.starts[position])
        return os.fsdecode(bytes(self.names[start : start + int(self.lengths[position])]))

    def __iter__(self) -> Iterator[str]:
        for block, lengths in self.blocks():
            yield from map(os.fsdecode, split_block(block, lengths))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Paths | list) and len(self) == len(other) and all(map(operator.eq, self, other))

    def __repr__(self) -> str:
        return f"Paths({list(self[:3])}{', ...' if len(self) > 3 else ''})"

    def blocks(self) -> Iterator[tuple[bytes, np.ndarray]]:
        """All names in order, BLOCK at a time: (the names without anything between them, their lengths (M,) uint16)."""
        for first in range(0, len(self), BLOCK):
            starts = self.starts[first : first + BLOCK]
            lengths = self.lengths[first : first + BLOCK]
            ends = starts + lengths
            # Names that are neighbours in `names` are copied together, as one run.
            breaks = np.flatnonzero(starts[1:] != ends[:-1])
            run_starts = starts[np.append(0, breaks + 1)]
            run_ends = ends[np.append(breaks, -1)]
            runs = zip(run_starts.tolist(), run_ends.tolist(), strict=True)
            yield b"".join([self.names[start:end] for start, end in runs]), lengths


def split_block(block: bytes, lengths: np.ndarray) -> list[bytes]:
    """The single names of a block of Paths."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return [block[start:end] for start, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]
