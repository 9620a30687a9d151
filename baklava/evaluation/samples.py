"""What the engine works on: encoded samples, the cells that answer them, and which samples are read together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from baklava.budgets import Budgets, Decoding
from baklava.errors import UserError
from baklava.evaluation.record_schema import FULL, Cell, Record
from baklava.eviction import EvictionPolicy, StreamingLLM
from baklava.experiment.components import EvictionConfig
from baklava.experiment.jobs import MethodBudgets
from baklava.experiment.settings import EvaluateConfig
from baklava.system.fingerprint import fingerprint
from baklava.tasks import Sample

# Part of every fingerprint: raise it with a change after which the engine may give other answers.
VERSION = 4

MAX_PADDING = 0.1  # samples are read together while at most this fraction of what is read is padding
MAX_SAMPLES_TOGETHER = 16
MAX_QUESTIONS_TOGETHER = 256


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
        return cls(FULL, "none", 0.0, budgets, StreamingLLM())

    def identify(self, model: str, task: str, settings: EvaluateConfig) -> Cell:
        """The cell of the benchmark that this is for a model and a task."""
        return Cell(
            model,
            task,
            self.allocator,
            self.eviction,
            self.ratio,
            settings.protocol,
            settings.seed,
            settings.length,
            settings.decoding,
        )

    @property
    def label(self) -> str:
        if self.allocator == FULL:
            return FULL
        bits = f" {self.budgets.width} bits" * (self.budgets.bits is not None)
        return f"{self.allocator}/{self.eviction} r={self.ratio:g}{bits}"

    def fingerprint(self, *more: Any) -> str:
        """A fingerprint of what this cell contributes to an answer, together with `more`."""
        shares = [[round(float(share), 12) for share in row] for row in self.budgets.shares]
        policy = [self.policy.family, asdict(self.policy)] if self.budgets.ratio else None
        bits = [] if self.budgets.bits is None else [self.budgets.bits.tolist()]
        constraints = self.budgets.constraints()
        return fingerprint(VERSION, shares, self.budgets.ratio, policy, *bits, *constraints, *more)


def cell_specs(
    methods: Iterable[MethodBudgets], evictions: Mapping[str, EvictionConfig], *, n_layers: int, n_kv_heads: int
) -> list[CellSpec]:
    """The full cache, then the cells of a job. Raises `UserError` for budgets of another ratio than their cell's."""
    cells = [CellSpec.full(n_layers=n_layers, n_kv_heads=n_kv_heads)]
    for method in methods:
        budgets = Budgets.load(method.path)
        if budgets.ratio != method.ratio:
            raise UserError(f"{method.path}: budgets for ratio {budgets.ratio:g}, expected {method.ratio:g}")
        policy = evictions[method.eviction].build()
        cells.append(CellSpec(method.allocator, method.eviction, method.ratio, budgets, policy))
    return cells


@dataclass(frozen=True)
class EncodedSample:
    """A sample in tokens: the context that is compressed, what is read after it, and the cells that answer it.

    Where the model's rotation depends on the length of a text, `rotated_for` stands for the rotation; only samples that
    agree in it are computed together.
    """

    sample: Sample
    context: list[int]
    question: list[int]
    cells: Sequence[CellSpec]
    answer: Sequence[int] = ()  # where it is read, not generated
    steps: tuple[int, ...] = ()  # tokens of the question that are read at a time; none: all
    turn: int = 1  # of a conversation, from 1
    rotated_for: int | None = None

    @property
    def n_after_context(self) -> int:
        """Tokens that are read together after the context."""
        return len(self.question) + len(self.answer)


class Request(NamedTuple):
    """One sample to be answered in one cell, with what is known of its record so far."""

    encoded: EncodedSample
    cell: CellSpec
    record: Record

    @property
    def decoding(self) -> Decoding:
        """How tokens after the context are kept; the full cache, which all are compared with, keeps everything."""
        return "fixed" if self.record.decoding == "fixed" and self.cell.budgets.ratio else "grow"


def batches(samples: Iterable[EncodedSample], max_rows: int) -> Iterator[list[EncodedSample]]:
    """Samples in the order given, those of about equal length together until they make `max_rows` rows.

    Questions about one context that follow each other stay together, however many rows they make: it is read once.
    """
    batch: list[EncodedSample] = []
    for encoded in samples:
        if not (batch and _asks_about(batch[-1], encoded) and len(batch) < MAX_QUESTIONS_TOGETHER):
            lengths = [len(context) for context in distinct_contexts([*batch, encoded])]
            padded = max(lengths) * len(lengths)
            n_rows = sum(len(each.cells) for each in (*batch, encoded))
            full = n_rows > max_rows or len(lengths) > MAX_SAMPLES_TOGETHER
            rotated_apart = bool(batch) and encoded.rotated_for != batch[0].rotated_for
            if batch and (full or rotated_apart or padded - sum(lengths) > MAX_PADDING * padded):
                yield batch
                batch = []
        batch.append(encoded)
    if batch:
        yield batch


def _asks_about(other: EncodedSample, encoded: EncodedSample) -> bool:
    """Whether two samples have the same context, read in the same rotation."""
    return (encoded.rotated_for, encoded.context) == (other.rotated_for, other.context)


def distinct_contexts(samples: Iterable[EncodedSample]) -> list[tuple[int, ...]]:
    """The contexts of samples, each once, in the order given."""
    return list(dict.fromkeys(tuple(encoded.context) for encoded in samples))


def samples_of(requests: Iterable[Request]) -> list[EncodedSample]:
    """Each sample with those of its cells that are among the requests."""
    samples: dict[int, EncodedSample] = {}
    for encoded, cell, _ in requests:
        known = samples.get(encoded.sample.index)
        samples[encoded.sample.index] = replace(encoded, cells=[cell] if known is None else [*known.cells, cell])
    return list(samples.values())
