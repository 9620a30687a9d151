"""The evaluation engine: one prefill per sample, all cells decoded from it as rows of ragged batches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from baklava.errors import UserError
from baklava.evaluation.prompt import Prompts
from baklava.evaluation.samples import CellResult, CellSpec, EncodedSample, batches, without_memory, works_of
from baklava.experiment.schema import EvaluateConfig
from baklava.inference.batch import BatchState, answer_losses, compress_rows, prefill
from baklava.inference.decoding import DecodingBatch, DecodingRow
from baklava.models.encoder import Tokens
from baklava.models.load import LoadedModel
from baklava.models.shape import shape_of
from baklava.tasks import Sample, Task

MEMORY_FRACTION = 0.5  # of the memory that is free, for the rows that are decoded together
ROOM_FRACTION = 0.5  # of the rows decoded together; once so many have ended, others begin
MIN_CHUNK = 512  # a context for which memory runs out is read in ever shorter chunks, down to so many tokens


class Engine:
    """Answers samples in cells, many rows at a time.

    Answers do not depend on what is computed together, up to the order of floating-point sums: in another batch two
    tokens that are equally likely to the last bits may change places.
    """

    def __init__(self, loaded: LoadedModel, task: Task, settings: EvaluateConfig):
        self.loaded = loaded
        self.task = task
        self._settings = settings
        self._prompts = Prompts(loaded.name, loaded.tokenizer, task, settings, loaded.template_kwargs)
        if settings.length > loaded.n_positions:
            raise UserError(
                f"evaluate.length: {settings.length} tokens, but model {loaded.name} has {loaded.n_positions} "
                "positions; ask for at most so many"
            )

    def work(self, sample: Sample, cells: Sequence[CellSpec], tokens: Tokens | None = None) -> EncodedSample:
        """The sample in tokens, split as the protocol says, where they are not given.

        Raises `UserError` where it takes more positions than the model has, and where a part of it is empty.
        """
        context, question, answer = tokens or self._prompts.tokens(sample)
        if not context:
            raise UserError(f"task {self.task.name}: sample {sample.index} has no context to compress; leave it out")
        if self.task.by_loss and not answer:
            raise UserError(f"task {self.task.name}: sample {sample.index} has no tokens to score; leave it out")
        needed = len(context) + len(question) + max(len(answer), sample.max_new_tokens)
        if needed > self.loaded.n_positions:
            raise UserError(
                f"task {self.task.name}: sample {sample.index} takes {needed} tokens, but model {self.loaded.name} "
                f"has {self.loaded.n_positions} positions; lower evaluate.length"
            )
        work = EncodedSample(sample, context, question, cells, answer)
        return replace(work, rotated_for=self.loaded.rotated_for(self._length(work)))

    def answers(
        self, works: Iterable[EncodedSample], most: int | None = None, chunk: int | None = None
    ) -> Iterator[list[CellResult]]:
        """All cells' answers, as they are finished, from at most `most` rows at a time (None: as the settings say).

        Contexts are read in one pass, or in chunks of `chunk` tokens (None: as the settings say). Where memory runs
        out, what was under way begins anew with half as many rows at a time, and a sample that cannot be read alone
        with half as long chunks; one of which not even these can be read, or a row that cannot be decoded alone, has
        failed.
        """
        run = _Run(self, works, most or self._settings.batch_rows, chunk or self._settings.prefill_chunk)
        while True:
            try:
                answers, in_want = run.advance(), False
            except torch.OutOfMemoryError:
                answers, in_want = [], True  # mended below: the exception holds on to tensors
            if answers is None:
                return
            if in_want:
                failed, again = run.give_up()
                answers = [without_memory(work, cell) for work in failed for cell in work.cells]
                fewer = max(1, min(run.most, sum(len(one.cells) for one in again)) // 2)
                yield from self.answers(again, fewer, run.chunk)
            if answers:
                yield answers

    def record(self, begun: _Begun, found: dict[str, Any], seconds: float) -> CellResult:
        """Of a row that is finished, with what was `found`: prediction, score, loss."""
        work = begun.work
        if not math.isfinite(found["score"]):
            return CellResult(work, begun.cell, {}, f"its score is {found['score']}; try another model.dtype")
        total = self.n_caches * len(work.context)
        record = {
            **found,
            "context_tokens": len(work.context),
            "answers": list(work.sample.answers),
            "group": work.sample.group,
            "total_entries": total,
            "kv_bytes_full": total * self._entry_bytes,
            "kept_entries": begun.kept_entries,
            "kv_bytes": begun.kv_bytes,
            "seconds": seconds,
        }
        return CellResult(work, begun.cell, record)

    def n_after(self, work: EncodedSample) -> int:
        """Tokens that are read together after the context."""
        return len(work.question) + len(work.answer)

    def _length(self, work: EncodedSample) -> int:
        """Of the whole text: up to the end of a known answer, or to the last token that the model may have to read."""
        generated = 0 if self.task.by_loss else work.sample.max_new_tokens - 1
        return len(work.context) + self.n_after(work) + generated

    def n_fitting(
        self, rows: Sequence[tuple[EncodedSample, CellSpec]], going: Sequence[tuple[EncodedSample, CellSpec]]
    ) -> int:
        """How many of the rows, from the first on, fit into memory beside those that are decoded already."""
        if self._settings.memory_gib is None:
            memory = MEMORY_FRACTION * self.loaded.free_memory()
        else:
            memory = self._settings.memory_gib * 2**30 - sum(self._row_bytes(*one) for one in going)
        for n, one in enumerate(rows):
            memory -= self._row_bytes(*one)
            if memory < 0:
                return n
        return len(rows)

    def _row_bytes(self, work: EncodedSample, cell: CellSpec) -> float:
        """The most that a row takes, about: twice what it keeps and reads, as rows are copied when others leave."""
        after = len(work.question) + work.sample.max_new_tokens
        return 2 * ((1 - cell.budgets.ratio) * len(work.context) + after) * self.n_caches * self._entry_bytes

    @property
    def n_caches(self) -> int:
        return self.loaded.n_layers * self.loaded.n_kv_heads

    @cached_property
    def _entry_bytes(self) -> int:
        """Bytes of one entry's key and value."""
        shape = shape_of(self.loaded.model.config, self.loaded.name)
        return shape.kv_bytes_per_token(self.loaded.model.dtype.itemsize) // shape.n_kv_heads


@dataclass(frozen=True)
class _Begun:
    """A row whose context is compressed, to so many entries and bytes."""

    work: EncodedSample
    cell: CellSpec
    kept_entries: int
    kv_bytes: int


@dataclass
class _Batch:
    """Samples that are read together, and their rows that have not begun: (place among the samples, cell)."""

    works: Sequence[EncodedSample]
    waiting: list[tuple[int, CellSpec]]
    prefilled: BatchState | None = None
    seconds: float = 0.0  # of reading, per row

    @classmethod
    def of(cls, works: Sequence[EncodedSample]) -> _Batch:
        return cls(works, [(place, cell) for place, work in enumerate(works) for cell in work.cells])

    @property
    def rows(self) -> list[tuple[EncodedSample, CellSpec]]:
        return [(self.works[place], cell) for place, cell in self.waiting]


class _Run:
    """Work under way: rows that are decoded together, and samples of which rows wait for others to end."""

    def __init__(self, engine: Engine, works: Iterable[EncodedSample], most: int, chunk: int | None):
        self._engine = engine
        self._batches = batches((work for work in works if work.cells), most)
        self._batch: _Batch | None = None
        self._pool: DecodingBatch[_Begun] = DecodingBatch(engine.loaded)
        self.most = most
        self.chunk = chunk

    @property
    def _going(self) -> list[tuple[EncodedSample, CellSpec]]:
        return [(row.what.work, row.what.cell) for row in self._pool.going]

    def advance(self) -> list[CellResult] | None:
        """Do what is next: read, begin or decode. The answers that are finished by it, None after the last."""
        n_going = len(self._pool.going)
        if self._batch is None and n_going <= self.most * (1 - ROOM_FRACTION):
            works = next(self._batches, None)
            self._batch = _Batch.of(works) if works else None
        if self._batch is not None:
            if self._batch.prefilled is None:
                self._read(self._batch)
            if n := self._n_beginning(self._batch, n_going):
                return self._begin(self._batch, n)
        if not n_going:
            return None
        return self._answers(self._pool.step())

    def _read(self, batch: _Batch) -> None:
        started = time.perf_counter()
        policies = [cell.policy for _, cell in batch.waiting]
        contexts = [work.context for work in batch.works]
        batch.prefilled = prefill(self._engine.loaded, contexts, policies, batch.works[0].rotated_for, self.chunk)
        batch.seconds = (time.perf_counter() - started) / len(batch.waiting)

    def _n_beginning(self, batch: _Batch, n_going: int) -> int:
        """How many of the rows that wait begin now: 0 while there is room for few."""
        if n_going and self._going[0][0].rotated_for != batch.works[0].rotated_for:
            return 0
        wanted = self._n_alike(batch)
        n = min(wanted, self.most - n_going)
        if n_going and n < min(wanted, self.most * ROOM_FRACTION):
            return 0
        fitting = self._engine.n_fitting(batch.rows[:n], self._going)
        return fitting if n_going else max(1, fitting)

    def _n_alike(self, batch: _Batch) -> int:
        """Rows that can begin together: a sliding window would count the padding before shorter questions."""
        if not self._engine.loaded.has_windows:
            return len(batch.waiting)
        lengths = [self._engine.n_after(work) for work, _ in batch.rows]
        return next((place for place, length in enumerate(lengths) if length != lengths[0]), len(lengths))

    def _begin(self, batch: _Batch, n: int) -> list[CellResult]:
        """Compress for the first rows that wait, and read their questions."""
        started = time.perf_counter()
        assert batch.prefilled is not None
        rows = batch.waiting[:n]
        cells, places = [cell for _, cell in rows], [place for place, _ in rows]
        sequences = compress_rows(
            self._engine.loaded,
            batch.prefilled,
            [cell.budgets for cell in cells],
            [cell.policy for cell in cells],
            places,
        )
        works = [batch.works[place] for place in places]
        sizes = zip(works, cells, sequences.kept_entries(), sequences.row_bytes(), strict=True)
        begun = [_Begun(*one) for one in sizes]
        if self._engine.task.by_loss:
            answers = self._by_loss(sequences, begun, batch.seconds, started)
        else:
            seconds = batch.seconds + (time.perf_counter() - started) / n
            answering = [
                DecodingRow(one, one.work.sample.max_new_tokens, one.work.sample.one_line, seconds) for one in begun
            ]
            answers = self._answers(self._pool.add(sequences, [work.question for work in works], answering))
        del batch.waiting[:n]
        if not batch.waiting:
            self._batch = None
        return answers

    def _answers(self, rows: Sequence[DecodingRow[_Begun]]) -> list[CellResult]:
        """Predictions and their scores."""
        answers = []
        for row in rows:
            sample = row.what.work.sample
            text = self._engine.loaded.decode(row.tokens)
            score = self._engine.task.score(text, sample.answers, sample.all_classes)
            answers.append(self._engine.record(row.what, {"prediction": text, "score": score}, row.seconds))
        return answers

    def _by_loss(
        self, sequences: BatchState, begun: Sequence[_Begun], seconds: float, started: float
    ) -> list[CellResult]:
        """Losses per token of the answers, and the geometric mean probabilities that are their scores."""
        loaded = self._engine.loaded
        questions, answers = [one.work.question for one in begun], [one.work.answer for one in begun]
        losses = answer_losses(loaded, sequences, questions, answers).tolist()
        seconds += (time.perf_counter() - started) / len(begun)
        found = [{"prediction": "", "score": math.exp(-loss), "loss": loss} for loss in losses]
        return [self._engine.record(one, each, seconds) for one, each in zip(begun, found, strict=True)]

    def give_up(self) -> tuple[list[EncodedSample], list[EncodedSample]]:
        """After memory ran out: what has failed, and what is to begin anew with fewer rows. Both are forgotten here."""
        going, batch = self._going, self._batch
        waiting = batch.rows if batch else []
        if batch and not going and batch.prefilled is None and len(batch.works) == 1:
            length = len(batch.works[0].context)
            shorter = min(self.chunk or length, length) // 2
            if shorter >= MIN_CHUNK:
                self.chunk = shorter
                return [], []
            self._batch = None
            return works_of(waiting), []
        if self.most == 1:
            if going:
                self._pool = DecodingBatch(self._engine.loaded)
                return works_of(going), []
            assert batch is not None
            del batch.waiting[:1]
            self._batch = batch if batch.waiting else None
            return works_of(waiting[:1]), []
        self._pool, self._batch = DecodingBatch(self._engine.loaded), None
        return [], works_of(going + waiting)
