"""The evaluation engine: one prefill per sample, all cells decoded from it as rows of ragged batches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from baklava.budgets import Budgets
from baklava.config import EvaluateConfig, EvictionConfig
from baklava.errors import UserError
from baklava.eviction import EvictionPolicy, StreamingLLM
from baklava.fingerprint import fingerprint
from baklava.generation import Sequences, answer_losses, compressed, greedy_answers, prefill
from baklava.jobs import MethodBudgets
from baklava.models.load import LoadedModel
from baklava.prompts import split_prompt
from baklava.tasks import Sample, Task

# Part of every fingerprint: raise it with a change after which the engine may give other answers.
VERSION = 1

MOST_PADDING = 0.1  # samples are read together while padding is at most this part of what is read
MOST_TOGETHER = 16
MEMORY_PART = 0.5  # of the memory that is free, for the rows that are decoded together


@dataclass(frozen=True)
class Compression:
    """A way to compress; `full` is the uncompressed cache."""

    allocator: str
    eviction: str
    ratio: float
    budgets: Budgets
    policy: EvictionPolicy

    @classmethod
    def full(cls, *, n_layers: int, n_kv_heads: int) -> Compression:
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


def cells_of(
    methods: Iterable[MethodBudgets], evictions: Mapping[str, EvictionConfig], *, n_layers: int, n_kv_heads: int
) -> list[Compression]:
    """The full cache, then the cells of a job. Raises `UserError` for budgets of another ratio than asked for."""
    cells = [Compression.full(n_layers=n_layers, n_kv_heads=n_kv_heads)]
    for one in methods:
        budgets = Budgets.load(one.path)
        if budgets.ratio != one.ratio:
            raise UserError(f"{one.path}: budgets for ratio {budgets.ratio:g}, expected {one.ratio:g}")
        cells.append(Compression(one.allocator, one.eviction, one.ratio, budgets, evictions[one.eviction].build()))
    return cells


@dataclass(frozen=True)
class Work:
    """A sample, its tokens that are compressed and those that are read after it, and the cells that answer it."""

    sample: Sample
    context: list[int]
    question: list[int]
    cells: Sequence[Compression]


@dataclass(frozen=True)
class Answer:
    """What one cell made of one sample, or why it made nothing."""

    work: Work
    cell: Compression
    record: dict[str, Any]
    failed: str = ""


def batches(works: Iterable[Work], settings: EvaluateConfig) -> Iterator[list[Work]]:
    """Work in the order given, samples of about equal length together until a batch of rows is full."""
    batch: list[Work] = []
    for work in works:
        lengths = [len(one.context) for one in (*batch, work)]
        padded = max(lengths) * len(lengths)
        n_rows = sum(len(one.cells) for one in (*batch, work))
        full = n_rows > settings.batch_rows or len(lengths) > MOST_TOGETHER
        if batch and (full or padded - sum(lengths) > MOST_PADDING * padded):
            yield batch
            batch = []
        batch.append(work)
    if batch:
        yield batch


class Engine:
    """Answers samples in cells, many rows at a time.

    Answers do not depend on what is computed together, up to the order of floating-point sums: in another batch two
    tokens that are equally likely to the last bits may change places.
    """

    def __init__(self, loaded: LoadedModel, task: Task, settings: EvaluateConfig):
        self._loaded = loaded
        self._task = task
        self._settings = settings
        if settings.length > loaded.n_positions:
            raise UserError(
                f"evaluate.length: {settings.length} tokens, but model {loaded.name} has {loaded.n_positions} "
                "positions; ask for at most so many"
            )

    def work(self, sample: Sample, cells: Sequence[Compression]) -> Work:
        """The sample in tokens, split as the protocol says; at least one token is read after compression.

        Raises `UserError` where it takes more positions than the model has.
        """
        settings = self._settings
        parts = split_prompt(sample, self._loaded.tokenizer, protocol=settings.protocol, chat=settings.chat_template)
        context, rest = self._loaded.encode(parts.context, begin=parts.begin), self._loaded.encode(parts.rest)
        if not rest:
            context, rest = context[:-1], context[-1:]
        needed = len(context) + len(rest) + sample.max_new_tokens
        if needed > self._loaded.n_positions:
            raise UserError(
                f"task {self._task.name}: sample {sample.index} takes {needed} tokens, but model {self._loaded.name} "
                f"has {self._loaded.n_positions} positions; lower evaluate.length"
            )
        return Work(sample, context, rest, cells)

    def answers(self, batch: Sequence[Work]) -> Iterator[list[Answer]]:
        """All cells' answers to a batch of samples, in parts, as they are finished.

        Where memory runs out the samples are read one by one, and the rows decoded in halves; where it does not do for
        one sample or row, that one has failed.
        """
        started = time.perf_counter()
        try:
            prefilled = prefill(
                self._loaded, [one.context for one in batch], [cell.policy for one in batch for cell in one.cells]
            )
        except torch.OutOfMemoryError:
            prefilled = None
        if prefilled is None:
            if len(batch) == 1:
                yield [_out_of_memory(batch[0], cell) for cell in batch[0].cells]
            else:
                for one in batch:
                    yield from self.answers([one])
            return
        rows = [(place, cell) for place, one in enumerate(batch) for cell in one.cells]
        prefill_seconds = (time.perf_counter() - started) / len(rows)
        most = len(rows)
        while rows:
            n = min(most, self._n_fitting(rows, batch))
            try:
                yield self._decoded(prefilled, rows[:n], batch, prefill_seconds)
            except torch.OutOfMemoryError:
                if n > 1:
                    most = n // 2
                    continue
                place, cell = rows[0]
                yield [_out_of_memory(batch[place], cell)]
            rows = rows[n:]

    def _decoded(
        self,
        prefilled: Sequences,
        rows: Sequence[tuple[int, Compression]],
        batch: Sequence[Work],
        prefill_seconds: float,
    ) -> list[Answer]:
        started = time.perf_counter()
        budgets, policies = [cell.budgets for _, cell in rows], [cell.policy for _, cell in rows]
        sequences = compressed(self._loaded, prefilled, budgets, policies, [place for place, _ in rows])
        kept, sizes = sequences.kept_entries(), sequences.row_bytes()
        works = [batch[place] for place, _ in rows]
        found = self._by_loss(sequences, works) if self._task.by_loss else self._generated(sequences, works)
        seconds = (time.perf_counter() - started) / len(rows) + prefill_seconds
        return [
            Answer(work, cell, {**self._record(work, one), "kept_entries": n, "kv_bytes": size, "seconds": seconds})
            if math.isfinite(one["score"])
            else Answer(work, cell, {}, f"its score is {one['score']}; try another model.dtype")
            for work, (_, cell), one, n, size in zip(works, rows, found, kept, sizes, strict=True)
        ]

    def _generated(self, sequences: Sequences, works: Sequence[Work]) -> list[dict[str, Any]]:
        """Predictions and their scores."""
        samples = [work.sample for work in works]
        tokens = greedy_answers(
            self._loaded,
            sequences,
            [work.question for work in works],
            max_new_tokens=[sample.max_new_tokens for sample in samples],
            one_line=[sample.one_line for sample in samples],
        )
        predictions = [self._loaded.decode(one) for one in tokens]
        return [
            {"prediction": text, "score": self._task.score(text, sample.answers, sample.all_classes)}
            for text, sample in zip(predictions, samples, strict=True)
        ]

    def _by_loss(self, sequences: Sequences, works: Sequence[Work]) -> list[dict[str, Any]]:
        """Losses per token of the answers, and the geometric mean probabilities that are their scores."""
        answers = [self._loaded.encode(work.sample.answers[0]) for work in works]
        losses = answer_losses(self._loaded, sequences, [work.question for work in works], answers)
        return [{"prediction": "", "score": math.exp(-loss), "loss": loss} for loss in losses.tolist()]

    def _record(self, work: Work, found: dict[str, Any]) -> dict[str, Any]:
        sample = work.sample
        total = self._n_caches * len(work.context)
        return {
            **found,
            "context_tokens": len(work.context),
            "answers": list(sample.answers),
            "group": sample.group,
            "total_entries": total,
            "kv_bytes_full": total * self._entry_bytes,
        }

    @property
    def _n_caches(self) -> int:
        return self._loaded.n_layers * self._loaded.n_kv_heads

    @cached_property
    def _entry_bytes(self) -> int:
        """Bytes of one entry's key and value."""
        config = self._loaded.model.config.get_text_config(decoder=True)
        dimension = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * dimension * self._loaded.model.dtype.itemsize

    def _n_fitting(self, rows: Sequence[tuple[int, Compression]], batch: Sequence[Work]) -> int:
        """How many of the rows, from the first on, are decoded together: by the setting, and by memory."""
        memory = self._memory()
        for n, (place, cell) in enumerate(rows):
            work = batch[place]
            after = len(work.question) + work.sample.max_new_tokens
            entries = (1 - cell.budgets.ratio) * len(work.context) + after
            memory -= 2 * entries * self._n_caches * self._entry_bytes  # twice: rows are copied when some leave
            if n == self._settings.batch_rows or memory < 0:
                return max(1, n)
        return len(rows)

    def _memory(self) -> float:
        """Bytes for the rows that are decoded together."""
        if self._settings.memory_gib is not None:
            return self._settings.memory_gib * 2**30
        return MEMORY_PART * self._loaded.free_memory()


def _out_of_memory(work: Work, cell: Compression) -> Answer:
    return Answer(
        work, cell, {}, f"{len(work.context)} tokens of context do not fit into memory; lower evaluate.length"
    )
