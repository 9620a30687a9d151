"""The records: what each sample left in each cell, one row of `records.parquet` per sample and cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
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
    decoding: str

    @property
    def full(self) -> Cell:
        """The cell without compression on the same samples; whatever the cells' decoding, it grows."""
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


@dataclass(frozen=True)
class Record:
    """What one sample left in one cell: an answer with its score and sizes, or the reason why there is none.

    All fields but those in `TIMED` are the columns of the records file, in this order. Those go into the timings file,
    so that two runs write equal records.
    """

    model: str
    task: str
    allocator: str
    eviction: str
    ratio: float
    protocol: str
    seed: int
    sample: int
    length: int
    decoding: str
    context: str = ""  # samples that share a context have it in common; their scores depend on each other
    question: str = ""
    turn: int = 0  # of a conversation, from 1
    context_tokens: int = 0
    prediction: str = ""
    answers: Sequence[str] = ()
    group: str = ""
    score: float = math.nan
    loss: float = math.nan  # per token, where the score is exp(-loss); NaN where answers are generated
    kept_entries: int = 0
    total_entries: int = 0
    kv_bytes: int = 0
    kv_bytes_full: int = 0
    peak_kv_bytes: int = 0  # the most that the answer took: the context's bytes, and those of the tokens after it
    failed: str = ""  # why there is no answer; empty where there is one
    seconds: float = math.nan  # the row's share of the wall time of the batches that it was in
    repetition_seconds: float = math.nan  # what reading the context a second time took, for policies that need it
    repetition_loss: float = math.nan  # nats per token of that repetition

    @classmethod
    def of(cls, cell: Cell, sample: int, **values: Any) -> Record:
        return cls(**cell._asdict(), sample=sample, **values)

    @classmethod
    def from_store(cls, cell: Cell, sample: int, asked: Mapping[str, Any], stored: Mapping[str, Any]) -> Record:
        """Undo `to_store`; `asked` says context, question and turn."""
        return cls.of(cell, sample, **asked, **stored)

    def to_store(self) -> dict[str, Any]:
        """What the store of finished answers keeps: all that its key does not imply, without NaN."""
        values = {name: getattr(self, name) for name in _STORED}
        return {name: value for name, value in values.items() if value == value}

    def to_row(self) -> dict[str, Any]:
        """Values by column, of the records file and of the timings file."""
        return dict(vars(self))

    def fail(self, reason: str) -> Record:
        """The record of the same sample and cell without an answer."""
        return Record.of(self.cell, self.sample, failed=reason)

    @property
    def cell(self) -> Cell:
        return Cell(*(getattr(self, name) for name in Cell._fields))


SCHEMA = 5
OPTIONAL = ()  # columns that older files may lack
TIMED = ("seconds", "repetition_seconds", "repetition_loss")

_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "Sequence[str]": pa.list_(pa.string())}

COLUMNS = pa.schema([(field.name, _TYPES[str(field.type)]) for field in fields(Record) if field.name not in TIMED])

# In the order in which earlier versions wrote them, so that equal answers are equal lines.
_STORED = (
    "prediction",
    "score",
    "loss",
    "context_tokens",
    "answers",
    "group",
    "total_entries",
    "kv_bytes_full",
    "kept_entries",
    "kv_bytes",
    "peak_kv_bytes",
    *TIMED,
)
