"""The records: one row per sample and cell, as `baklava evaluate` writes them and the summary reads them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyarrow as pa

FULL = "full"
UNIFORM = "uniform"


class Cell(NamedTuple):
    """What identifies a cell: model x task x method x ratio x evaluation setting."""

    model: str
    task: str
    allocator: str
    eviction: str
    ratio: float
    protocol: str
    seed: int
    length: int

    @property
    def full(self) -> Cell:
        """The cell without compression on the same samples."""
        return self._replace(allocator=FULL, eviction="none", ratio=0.0)

    @property
    def uniform(self) -> Cell:
        """The cell that spends the same memory evenly."""
        return self._replace(allocator=UNIFORM)

    @property
    def method(self) -> tuple[str, str]:
        """(allocator, eviction policy)."""
        return self.allocator, self.eviction

    def __str__(self) -> str:
        return f"{self.model}, {self.task}, {self.allocator}/{self.eviction} at r = {self.ratio:g}"


SCHEMA = 4

COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("task", pa.string()),
        ("allocator", pa.string()),
        ("eviction", pa.string()),
        ("ratio", pa.float64()),
        ("protocol", pa.string()),
        ("seed", pa.int64()),
        ("sample", pa.int64()),
        ("length", pa.int64()),
        ("context_tokens", pa.int64()),
        ("prediction", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("group", pa.string()),
        ("score", pa.float64()),
        ("loss", pa.float64()),  # per token, where the score is exp(-loss); NaN where answers are generated
        ("kept_entries", pa.int64()),
        ("total_entries", pa.int64()),
        ("kv_bytes", pa.int64()),
        ("kv_bytes_full", pa.int64()),
        ("failed", pa.string()),  # why there is no answer; empty where there is one
    ]
)


def failed_record(reason: str) -> dict[str, Any]:
    """What a sample that could not be made leaves in every cell."""
    numbers = ("context_tokens", "kept_entries", "total_entries", "kv_bytes", "kv_bytes_full")
    return {
        **dict.fromkeys(numbers, 0),
        **dict.fromkeys(("score", "loss"), math.nan),
        "prediction": "",
        "answers": [],
        "group": "",
        "failed": reason,
    }
