"""Schedules requests (a sample in a cell): prefills samples together, and decodes as many rows as fit into memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from baklava.budgets import Decoding
from baklava.cache.prefill import Repetition
from baklava.evaluation.record_schema import Record
from baklava.evaluation.sample_to_record import begin_record, fail_out_of_memory, score_answer, score_loss
from baklava.evaluation.samples import EncodedSample, Request, batches, distinct_contexts, samples_of
from baklava.eviction import EvictionPolicy
from baklava.experiment.settings import EvaluateConfig
from baklava.inference.batch import BatchState, answer_losses, compress_rows, prefill
from baklava.inference.decoding import DecodingBatch, DecodingRow
from baklava.models.load import LoadedModel
from baklava.models.shape import shape_of
from baklava.tasks import Task

MEMORY_FRACTION = 0.5  # of the free memory, for the rows that are decoded together
ROOM_FRACTION = 0.5  # of `max_rows`; others begin once so many rows are free
MIN_CHUNK = 512  # tokens; a context for which memory runs out is read in ever shorter chunks, down to this length


@dataclass
class _PrefillBatch:
    """Samples whose contexts are prefilled together, and those of their requests that have not begun."""

    samples: Sequence[EncodedSample]
    waiting: list[Request]
    prefilled: BatchState | None = None
    seconds: dict[EvictionPolicy, float] = field(default_factory=dict)  # of the prefill, per request of a policy

    @cached_property
    def contexts(self) -> list[tuple[int, ...]]:
        """What is prefilled: each context once, however many samples ask about it."""
        return distinct_contexts(self.samples)

    def contexts_of(self, requests: Sequence[Request]) -> list[int]:
        """For each request, the index of its context among those that are prefilled together."""
        index = {context: i for i, context in enumerate(self.contexts)}
        return [index[tuple(request.encoded.context)] for request in requests]


class Scheduler:
    """Requests in progress: rows that are decoded together, and a batch of samples with requests that wait for room."""

    def __init__(
        self,
        loaded: LoadedModel,
        task: Task,
        settings: EvaluateConfig,
        samples: Iterable[EncodedSample],
        *,
        max_rows: int,
        chunk: int | None,
    ):
        self._loaded = loaded
        self._task = task
        self._settings = settings
        self._batches = batches((encoded for encoded in samples if encoded.cells), max_rows)
        self._batch: _PrefillBatch | None = None
        self._decoding: DecodingBatch[Request] = DecodingBatch(loaded)
        self.max_rows = max_rows
        self.chunk = chunk

    @property
    def _active(self) -> list[Request]:
        """Requests that are being decoded."""
        return [row.request for row in self._decoding.active]

    def advance(self) -> list[Record] | None:
        """Take the next step: prefill, begin rows or decode. Returns the records it finishes, None after the last."""
        n_active = len(self._decoding.active)
        if self._batch is None and n_active <= self.max_rows * (1 - ROOM_FRACTION):
            samples = next(self._batches, None)
            self._batch = _PrefillBatch(samples, self._requests(samples)) if samples else None
        if self._batch is not None:
            if self._batch.prefilled is None:
                self._prefill(self._batch)
            if n := self._n_beginning(self._batch, n_active):
                return self._begin_rows(self._batch, n)
        if not n_active:
            return None
        return self._score(self._decoding.step())

    def give_up(self) -> tuple[list[Record], list[EncodedSample]]:
        """After memory ran out, forget what was in progress: records of what has failed, and samples to begin anew."""
        active, batch = self._active, self._batch
        waiting = batch.waiting if batch else []
        if batch and not active and batch.prefilled is None and len(batch.contexts) == 1:
            length = len(batch.contexts[0])
            shorter = min(self.chunk or length, length) // 2
            if shorter >= MIN_CHUNK:
                self.chunk = shorter
                return [], []
            self._batch = None
            return fail_out_of_memory(waiting), []
        if self.max_rows == 1:
            if active:
                self._decoding = DecodingBatch(self._loaded)
                return fail_out_of_memory(active), []
            assert batch is not None
            failed = batch.waiting.pop(0)
            self._batch = batch if batch.waiting else None
            return fail_out_of_memory([failed]), []
        self._decoding, self._batch = DecodingBatch(self._loaded), None
        return [], samples_of(active + waiting)

    def _requests(self, samples: Iterable[EncodedSample]) -> list[Request]:
        """A request per sample and cell; those that can begin together follow each other."""
        requests = [
            begin_record(self._loaded, self._task, self._settings, encoded, cell, self._entry_bytes)
            for encoded in samples
            for cell in encoded.cells
        ]
        if self._settings.decoding == "grow":
            return requests
        return sorted(requests, key=_reading)

    def _prefill(self, batch: _PrefillBatch) -> None:
        started = time.perf_counter()
        policies = [request.cell.policy for request in batch.waiting]
        batch.prefilled = prefill(self._loaded, batch.contexts, policies, batch.samples[0].rotated_for, self.chunk)
        seconds, repetitions = time.perf_counter() - started, batch.prefilled.repetitions
        shared = (seconds - sum(each.seconds for each in repetitions.values())) / len(policies)
        batch.seconds = dict.fromkeys(policies, shared)
        for policy, repetition in repetitions.items():  # on the account of those who need it
            batch.seconds[policy] += repetition.seconds / policies.count(policy)

    def _n_beginning(self, batch: _PrefillBatch, n_active: int) -> int:
        """How many of the waiting requests begin now: 0 while there is room for few."""
        if n_active and self._active[0].encoded.rotated_for != batch.samples[0].rotated_for:
            return 0
        if n_active and "fixed" in (self._active[0].decoding, batch.waiting[0].decoding):
            return 0  # rows that overwrite entries take turns at the same steps, so none joins others
        wanted = self._n_alike(batch.waiting)
        n = min(wanted, self.max_rows - n_active)
        if n_active and n < min(wanted, self.max_rows * ROOM_FRACTION):
            return 0
        fitting = self._n_fitting(batch.waiting[:n])
        return fitting if n_active else max(1, fitting)

    def _n_alike(self, waiting: Sequence[Request]) -> int:
        """Requests that can begin together: a sliding window would count the padding before shorter questions.

        So would entries that later tokens overwrite.
        """
        if not self._loaded.has_windows and self._settings.decoding == "grow":
            return len(waiting)
        kinds = [_reading(request) for request in waiting]
        return next((i for i, kind in enumerate(kinds) if kind != kinds[0]), len(kinds))

    def _n_fitting(self, requests: Sequence[Request]) -> int:
        """How many of the requests, from the first on, fit into memory beside those that are decoded already."""
        if self._settings.memory_gib is None:
            memory = MEMORY_FRACTION * self._loaded.free_memory()
        else:
            memory = self._settings.memory_gib * 2**30 - sum(map(self._row_bytes, self._active))
        for n, request in enumerate(requests):
            memory -= self._row_bytes(request)
            if memory < 0:
                return n
        return len(requests)

    def _row_bytes(self, request: Request) -> float:
        """About the most that a row takes: twice what it keeps and reads, as rows are copied when others leave."""
        encoded = request.encoded
        kept = (1 - request.cell.budgets.ratio) * len(encoded.context)
        after = len(encoded.question) + encoded.sample.max_new_tokens
        return 2 * (kept + after) * self._n_caches * self._entry_bytes

    @property
    def _n_caches(self) -> int:
        return self._loaded.n_layers * self._loaded.n_kv_heads

    @cached_property
    def _entry_bytes(self) -> int:
        """Bytes of one entry's key and value."""
        shape = shape_of(self._loaded.model.config, self._loaded.name)
        return shape.kv_bytes_per_token(self._loaded.model.dtype.itemsize) // shape.n_kv_heads

    def _begin_rows(self, batch: _PrefillBatch, n: int) -> list[Record]:
        """Compress the contexts of the first `n` waiting requests and read their questions."""
        started = time.perf_counter()
        assert batch.prefilled is not None
        waiting = batch.waiting[:n]
        contexts = batch.contexts_of(waiting)
        state = compress_rows(
            self._loaded,
            batch.prefilled,
            [request.cell.budgets for request in waiting],
            [request.cell.policy for request in waiting],
            contexts,
            decoding=waiting[0].decoding,
            # Where caches grow, a context that is kept whole is the full cache's, and none of these.
            compress_above=self._settings.compress_above if waiting[0].decoding == "fixed" else 0,
        )
        sizes = zip(waiting, contexts, state.kept_entries(), state.row_bytes(), strict=True)
        requests = [
            request._replace(
                record=_note_repetition(
                    replace(request.record, kept_entries=kept_entries, kv_bytes=kv_bytes),
                    batch.prefilled.repetitions.get(request.cell.policy),
                    row,
                )
            )
            for request, row, kept_entries, kv_bytes in sizes
        ]
        if self._task.by_loss:
            records = self._score_losses(state, requests, batch.seconds, started)
        else:
            seconds = (time.perf_counter() - started) / n
            rows = [_decoding_row(request, batch.seconds[request.cell.policy] + seconds) for request in requests]
            questions = [request.encoded.question for request in requests]
            steps = waiting[0].encoded.steps if waiting[0].decoding == "fixed" else ()
            records = self._score(self._decoding.add_rows(state, questions, rows, steps))
        del batch.waiting[:n]
        if not batch.waiting:
            self._batch = None
        return records

    def _score(self, rows: Sequence[DecodingRow[Request]]) -> list[Record]:
        """Records of generated answers with their scores."""
        return [score_answer(self._loaded, self._task, row.request, row.tokens, row.seconds) for row in rows]

    def _score_losses(
        self, state: BatchState, requests: Sequence[Request], read: Mapping[EvictionPolicy, float], started: float
    ) -> list[Record]:
        """Records of answers that are read: losses per token, and as scores geometric mean probabilities."""
        questions = [request.encoded.question for request in requests]
        answers = [request.encoded.answer for request in requests]
        losses = answer_losses(self._loaded, state, questions, answers).tolist()
        seconds = (time.perf_counter() - started) / len(requests)
        return [
            score_loss(request, loss, read[request.cell.policy] + seconds)
            for request, loss in zip(requests, losses, strict=True)
        ]


def _note_repetition(record: Record, repetition: Repetition | None, row: int) -> Record:
    """The record with what repeating the context of a batch row took, where it was not read only once."""
    if repetition is None:
        return record
    seconds = repetition.seconds / len(repetition.losses)
    return replace(record, repetition_seconds=seconds, repetition_loss=repetition.losses[row])


def _reading(request: Request) -> tuple[Decoding, int, tuple[int, ...]]:
    """How a row reads what comes after its context; rows that overwrite entries begin with those that read alike."""
    return request.decoding, request.encoded.n_after_context, request.encoded.steps


def _decoding_row(request: Request, seconds: float) -> DecodingRow[Request]:
    sample = request.encoded.sample
    return DecodingRow(request, sample.max_new_tokens, sample.one_line, seconds)
