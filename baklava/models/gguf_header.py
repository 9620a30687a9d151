"""Reads the header of a GGUF file: its settings, and the names, types and shapes of its tensors. No weight is read."""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from baklava.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # of the tensors, where a file names no other

STRING, ARRAY = 8, 9
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class BlockType(NamedTuple):
    """How tensors of a type are stored: blocks of `numbers` numbers in `n_bytes` bytes."""

    name: str
    numbers: int
    n_bytes: int


# By their ids in a file; these are the types that the package gguf can dequantise, and no others.
BLOCK_TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136),
    29: BlockType("IQ1_M", 256, 56),
    30: BlockType("BF16", 1, 2),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
}


class Skipped(NamedTuple):
    """An array of a header, of which only the length is read: vocabularies are long."""

    n_items: int


class GgufTensor(NamedTuple):
    """One tensor: the id of its type, its shape (as in torch, rows first), and where it begins after the header."""

    type_id: int
    shape: tuple[int, ...]
    offset: int


class GgufHeader(NamedTuple):
    """The settings and tensors of a file, by name; tensors begin `data_start` bytes into it."""

    settings: dict[str, Any]
    tensors: dict[str, GgufTensor]
    data_start: int

    def expected_bytes(self) -> int:
        """The least size of the complete file. All tensors must be of `BLOCK_TYPES`."""
        ends = [self.data_start]
        for tensor in self.tensors.values():
            block = BLOCK_TYPES[tensor.type_id]
            ends.append(self.data_start + tensor.offset + math.prod(tensor.shape) // block.numbers * block.n_bytes)
        return max(ends)


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file. Raises `UserError` naming a file that is none, or is damaged there."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Reader(data))
    except (OSError, ValueError, LookupError, OverflowError, MemoryError, RecursionError) as error:
        raise UserError(f"{path}: not a readable GGUF file ({' '.join(str(error).split())})") from None


def _parse(reader: _Reader) -> GgufHeader:
    if reader.bytes(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    if (version := reader.number("I")) not in VERSIONS:
        raise ValueError(f"version {version}; known: {', '.join(map(str, VERSIONS))}")
    n_tensors, n_settings = reader.number("Q"), reader.number("Q")
    settings = {}
    for _ in range(n_settings):
        name = reader.string()
        settings[name] = reader.value(reader.number("I"))
    tensors = {}
    for _ in range(n_tensors):
        name, n_dimensions = reader.string(), reader.number("I")
        shape = tuple(reader.number("Q") for _ in range(n_dimensions))[::-1]  # a file has the fastest dimension first
        tensors[name] = GgufTensor(reader.number("I"), shape, reader.number("Q"))
    alignment = int(settings.get("general.alignment", ALIGNMENT))
    return GgufHeader(settings, tensors, math.ceil(reader.position / alignment) * alignment)


class _Reader:
    """Reads values one after the other; `ValueError` where the data ends too early."""

    def __init__(self, data: mmap.mmap):
        self._data = data
        self.position = 0

    def number(self, form: str) -> Any:
        (number,) = struct.unpack(f"<{form}", self.bytes(struct.calcsize(f"<{form}")))
        return number

    def bytes(self, n: int) -> bytes:
        start = self.position
        self.skip(n)
        return self._data[start : self.position]

    def string(self) -> str:
        return self.bytes(self.number("Q")).decode("utf-8")

    def skip(self, n: int) -> None:
        self.position += n
        if self.position > len(self._data):
            raise ValueError("it ends within its header")

    def value(self, kind: int) -> Any:
        """A setting of a kind; of arrays, their length."""
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.number(FORMATS[kind])
        item, n_items = self.number("I"), self.number("Q")
        if item in FORMATS:
            self.skip(n_items * struct.calcsize(f"<{FORMATS[item]}"))
        else:
            for _ in range(n_items):
                if item == STRING:
                    self.skip(self.number("Q"))
                else:
                    self.value(item)
        return Skipped(n_items)
