"""What the engine works on: samples in tokens, the cells that answer them, and which are read together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.eviction import EvictionPolicy, StreamingLLM
from baklava.experiment.jobs import MethodBudgets
from baklava.experiment.schema import EvictionConfig
from baklava.system.fingerprint import fingerprint
from baklava.tasks import Sample

# Part of every fingerprint: raise it with a change after which the engine may give other answers.
VERSION = 2

MAX_PADDING = 0.1  # samples are read together while padding is at most this part of what is read
MAX_SAMPLES_TOGETHER = 16


@dataclass(frozen=True)
class CellSpec:
    """A way to compress; `full` is the uncompressed cache."""

    allocator: str
    eviction: str
    ratio: float
    budgets: Budgets
    policy: EvictionPolicy

    @classmethod
    def full(cls, *, n_layers: int, n_kv_heads: int) -> CellSpec:
        budgets = Budgets.uniform(n_layers=n_layers, n_kv_heads=n_kv_heads, ratio=0.0)
        return cls("full", "none", 0.0, budgets, StreamingLLM())

    @property
    def label(self) -> str:
        return "full" if self.allocator == "full" else f"{self.allocator}/{self.eviction} r={self.ratio:g}"

    def fingerprint(self, *more: Any) -> str:
        """Of what this cell contributes to an answer, together with `more`."""
        shares = [[round(float(share), 12) for share in row] for row in self.budgets.shares]
        policy = [self.policy.family, asdict(self.policy)] if self.budgets.ratio else None
        return fingerprint(VERSION, shares, self.budgets.ratio, policy, *more)


def cell_specs(
    methods: Iterable[MethodBudgets], evictions: Mapping[str, EvictionConfig], *, n_layers: int, n_kv_heads: int
) -> list[CellSpec]:
    """The full cache, then the cells of a job. Raises `UserError` for budgets of another ratio than asked for."""
    cells = [CellSpec.full(n_layers=n_layers, n_kv_heads=n_kv_heads)]
    for one in methods:
        budgets = Budgets.load(one.path)
        if budgets.ratio != one.ratio:
            raise UserError(f"{one.path}: budgets for ratio {budgets.ratio:g}, expected {one.ratio:g}")
        cells.append(CellSpec(one.allocator, one.eviction, one.ratio, budgets, evictions[one.eviction].build()))
    return cells


@dataclass(frozen=True)
class EncodedSample:
    """A sample, its tokens that are compressed and those that are read after them, and the cells that answer it.

    Where the model's rotation depends on the length of a text, `rotated_for` stands for it; such works are computed
    together only where they have the same.
    """

    sample: Sample
    context: list[int]
    question: list[int]
    cells: Sequence[CellSpec]
    answer: Sequence[int] = ()  # where it is read, not generated
    rotated_for: int | None = None


@dataclass(frozen=True)
class CellResult:
    """What one cell made of one sample, or why it made nothing."""

    work: EncodedSample
    cell: CellSpec
    record: dict[str, Any]
    failed: str = ""


def batches(works: Iterable[EncodedSample], n_rows: int) -> Iterator[list[EncodedSample]]:
    """Work in the order given, samples of about equal length together until they make `n_rows` rows."""
    batch: list[EncodedSample] = []
    for work in works:
        lengths = [len(one.context) for one in (*batch, work)]
        padded = max(lengths) * len(lengths)
        rows = sum(len(one.cells) for one in (*batch, work))
        full = rows > n_rows or len(lengths) > MAX_SAMPLES_TOGETHER
        other = bool(batch) and work.rotated_for != batch[0].rotated_for
        if batch and (full or other or padded - sum(lengths) > MAX_PADDING * padded):
            yield batch
            batch = []
        batch.append(work)
    if batch:
        yield batch


def works_of(rows: Iterable[tuple[EncodedSample, CellSpec]]) -> list[EncodedSample]:
    """Each sample with those of its cells that are among the rows."""
    works: dict[int, EncodedSample] = {}
    for work, cell in rows:
        known = works.get(work.sample.index)
        works[work.sample.index] = replace(work, cells=[cell] if known is None else [*known.cells, cell])
    return list(works.values())


def without_memory(work: EncodedSample, cell: CellSpec) -> CellResult:
    """Of a sample that could not be read, or answered, for want of memory."""
    return CellResult(
        work, cell, {}, f"{len(work.context)} tokens of context do not fit into memory; lower evaluate.length"
    )
