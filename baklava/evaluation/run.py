"""`baklava evaluate`: answers every sample of a task in every cell, each only once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cached_property
from itertools import chain
from typing import Any

from tqdm import tqdm

from baklava.budgets import Budgets
from baklava.errors import DataError, LengthError, UserError
from baklava.evaluation import timings
from baklava.evaluation.engine import Engine
from baklava.evaluation.prompt import Prompts
from baklava.evaluation.record_schema import COLUMNS, FULL, SCHEMA, Record
from baklava.evaluation.sample_to_record import asked
from baklava.evaluation.samples import CellSpec, EncodedSample, cell_specs
from baklava.evaluation.turns import Conversations
from baklava.experiment.jobs import EvaluateJob
from baklava.models.encoder import Tokens
from baklava.models.files import model_identity
from baklava.models.load import LoadedModel, load_model, load_tokenizer
from baklava.system.append_log import AppendLog
from baklava.system.fingerprint import fingerprint
from baklava.system.parquet import write_parquet_rows
from baklava.system.progress import Progress
from baklava.tasks import Sample

SAVE_SECONDS = 1.0  # the longest that an answer waits to be saved together with others


def evaluate(job: EvaluateJob) -> int:
    """Answer the samples of one task, or of a shard, in every cell; write the records, one row per sample and cell.

    What the store holds already is not computed again. A sample that cannot be made, scored or fitted into memory is
    recorded as failed in every cell, with the reason; returns how many are.
    """
    evaluation = _Evaluation(job)
    with closing(evaluation.store):
        with evaluation.progress:
            evaluation.answer_missing()
        rows = (record.to_row() for record in evaluation.records())
        write_parquet_rows(job.records, rows, COLUMNS, schema=SCHEMA)
        rows = (record.to_row() for record in evaluation.records() if not record.failed)
        write_parquet_rows(job.timings, rows, timings.COLUMNS, schema=timings.SCHEMA)
    for index, reason in evaluation.failed.items():
        tqdm.write(f"task {job.task.name}: sample {index} failed: {reason}")
    return len(evaluation.failed)


class _Evaluation:
    """One job in progress; memory does not grow with the number of samples, except for their keys."""

    def __init__(self, job: EvaluateJob):
        self._job = job
        self._task = job.task.build()
        self._task.check()  # again: a cluster node may lack what was there where the workflow was planned
        self._samples = job.shard.samples(self._task.n_samples(job.evaluate.n_samples))
        model, tokenizer = job.model, load_tokenizer(job.model)
        self._prompts = Prompts(model.name, tokenizer, self._task, job.evaluate, model.chat_template_kwargs)
        self._specs = _cell_specs(job)
        cells = [spec.identify(model.name, self._task.name, job.evaluate) for spec in self._specs]
        self._index = {cell: index for index, cell in enumerate(cells)}
        self.store = _open_store(job)
        self._keys: dict[int, list[str]] = {}  # of each sample, one per cell; none where it failed
        self._asked: dict[int, dict[str, Any]] = {}
        self._has_turns = job.evaluate.protocol == "turns" and not self._task.by_loss
        self._conversations = Conversations(self._make_sample)
        self.failed: dict[int, str] = {}
        self._scores = _RunningMeans(self._specs)
        name = f"evaluate {job.model.name} {self._task.name}"
        self.progress = Progress(total=len(self._samples) * len(cells), desc=name, unit="answer")

    @cached_property
    def _model(self) -> LoadedModel:
        return load_model(self._job.model)

    @cached_property
    def engine(self) -> Engine:
        """Made for the first missing answer: a run that finds everything in the store loads no model."""
        return Engine(self._model, self._task, self._job.evaluate)

    @cached_property
    def _fingerprints(self) -> list[str]:
        """Of each cell, a fingerprint of everything but the sample that determines an answer."""
        job = self._job
        protocol = job.evaluate.protocol
        shared = [
            model_identity(job.model),
            job.task.model_dump(mode="json"),
            "question_agnostic" if protocol == "turns" else protocol,  # earlier turns are in the tokens
            job.evaluate.chat_template,
        ]
        decoding = [] if job.evaluate.decoding == "grow" else [job.evaluate.decoding]
        return [spec.fingerprint(*shared, *(decoding if spec.budgets.ratio else [])) for spec in self._specs]

    def _is_kept_whole(self, tokens: Tokens) -> bool:
        return len(tokens.context) <= self._job.evaluate.compress_above

    def _answers_as_full(self, tokens: Tokens) -> bool:
        """Whether every cell answers as the full cache does: the context is short, and later tokens are added to it."""
        return self._is_kept_whole(tokens) and self._job.evaluate.decoding == "grow"

    def _make_keys(self, sample: Sample, tokens: Tokens) -> list[str]:
        """The tokens stand for all that makes them: tokenizer, chat template, its variables, the date."""
        digest = fingerprint(asdict(sample), tokens if tokens.steps else tokens[:3])
        cells = self._fingerprints
        if self._answers_as_full(tokens):
            cells = cells[:1] * len(cells)
        elif self._is_kept_whole(tokens):
            cells = [cells[0], *(fingerprint(cell, "kept whole") for cell in cells[1:])]
        return [f"{cell}-{digest}" for cell in cells]

    def _missing(self) -> Iterator[EncodedSample]:
        """Each sample with the cells in which the store holds no answer to it yet."""
        for index in self._samples:
            try:
                sample = self._make_sample(index)
                if not self._task.by_loss:  # are these answers that the metric can work with?
                    self._task.score("", sample.answers, sample.all_classes)
                earlier = self._conversations.earlier(sample) if self._has_turns else ()
                tokens = self._prompts.tokens(sample, earlier)
            except DataError:
                raise
            except UserError as error:
                self.failed[index] = str(error)
                self._keys[index] = []
                self.progress.update(len(self._specs))
                continue
            keys = self._make_keys(sample, tokens)
            self._keys[index] = keys
            turn = 1 + len(earlier)
            self._asked[index] = asked(sample, turn)
            specs = self._specs[:1] if self._answers_as_full(tokens) else self._specs
            missing = [spec for spec, key in zip(specs, keys, strict=False) if key not in self.store]
            self.progress.update(len(keys) - len(missing))
            if missing:
                engine = self.engine  # what is wrong with all samples is no failure of one
                try:
                    encoded = engine.encode(sample, missing, tokens, turn=turn)
                except UserError as error:
                    self.failed[index] = str(error)
                    self.progress.update(len(missing))
                else:
                    yield encoded

    def answer_missing(self) -> None:
        """Compute all missing answers; no model is loaded if there are none."""
        missing = self._missing()
        if (first := next(missing, None)) is None:
            return
        unsaved: list[Record] = []
        saved = time.monotonic()
        try:
            for records in self.engine.answer(chain([first], missing)):
                unsaved += records
                if len(unsaved) >= self._job.evaluate.batch_rows or time.monotonic() - saved > SAVE_SECONDS:
                    self._save(unsaved)
                    unsaved, saved = [], time.monotonic()
        finally:
            self._save(unsaved)

    def _make_sample(self, index: int) -> Sample:
        settings = self._job.evaluate
        try:
            return self._task.sample(
                split="evaluation",
                seed=settings.seed,
                index=index,
                length=settings.length,
                count_tokens=self._prompts.encoder.count,
            )
        except LengthError as error:
            raise LengthError(f"evaluate.length: {error}") from None

    def _save(self, records: list[Record]) -> None:
        """Put answers in the store, and show the mean scores so far."""
        entries = {}
        for record in records:
            if record.failed:
                self.failed.setdefault(record.sample, record.failed)
                continue
            index = self._index[record.cell]
            entries[self._keys[record.sample][index]] = record.to_store()
            self._scores.add(index, record.score)
        self.store.add(entries)
        self.progress.update(len(records))
        if text := str(self._scores):
            self.progress.set_postfix_str(text)

    def records(self) -> Iterator[Record]:
        """All records, by sample and cell, read back from the store."""
        for sample, keys in self._keys.items():
            for cell, index in self._index.items():
                if sample in self.failed:
                    yield Record.of(cell, sample, failed=self.failed[sample])
                else:
                    yield Record.from_store(cell, sample, self._asked[sample], self.store[keys[index]])


class _RunningMeans:
    """Mean scores of the answers so far, for the progress bar."""

    def __init__(self, specs: Sequence[CellSpec]):
        self._labels = [spec.label for spec in specs]
        self._totals = [0.0] * len(specs)
        self._counts = [0] * len(specs)

    def add(self, index: int, score: float) -> None:
        self._totals[index] += score
        self._counts[index] += 1

    def __str__(self) -> str:
        """The full cache's mean and the lowest, empty before the first answer."""
        columns = zip(self._labels, self._totals, self._counts, strict=True)
        means = {label: total / n for label, total, n in columns if n}
        if not means:
            return ""
        lowest = min(means, key=lambda label: means[label])
        full = f"full {means[FULL]:.2f}, " if FULL in means else ""
        return f"{full}lowest {means[lowest]:.2f} ({lowest})"


def _open_store(job: EvaluateJob) -> AppendLog:
    """Each shard adds to a file of its own, so that no two jobs write to one, and reads all."""
    unsharded, folder = job.store, job.store.with_suffix("")
    own = unsharded if job.shard.of == 1 else folder / f"{job.shard}.lines"
    others = [path for path in (unsharded, *sorted(folder.glob("*.lines"))) if path != own and path.is_file()]
    return AppendLog(own, others, alone=True)


def _cell_specs(job: EvaluateJob) -> list[CellSpec]:
    """The full cache, then the job's cells; their budgets tell the model's shape without loading it."""
    if job.cells:
        n_layers, n_kv_heads = Budgets.load(job.cells[0].path).shape
    else:
        loaded = load_model(job.model)
        n_layers, n_kv_heads = loaded.n_layers, loaded.n_kv_heads
    return cell_specs(job.cells, job.evictions, n_layers=n_layers, n_kv_heads=n_kv_heads)
