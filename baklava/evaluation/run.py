"""`baklava evaluate`: every sample of a task answered in every cell, each piece of work done once."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from functools import cached_property
from itertools import chain
from typing import Any

from tqdm import tqdm

from baklava.budgets import Budgets
from baklava.errors import DataError, UserError
from baklava.evaluation import timings
from baklava.evaluation.engine import Engine
from baklava.evaluation.prompt import Prompts
from baklava.evaluation.records import COLUMNS, SCHEMA, failed_record
from baklava.evaluation.samples import CellResult, CellSpec, EncodedSample, cell_specs
from baklava.experiment.jobs import EvaluateJob
from baklava.models.encoder import Tokens
from baklava.models.files import model_identity
from baklava.models.load import LoadedModel, load_model, load_tokenizer
from baklava.system.append_log import AppendLog
from baklava.system.fingerprint import fingerprint
from baklava.system.parquet import write_parquet_rows
from baklava.tasks import Sample

SAVE_SECONDS = 1.0  # answers wait so long, at most, for others to be written with them


def evaluate(job: EvaluateJob) -> int:
    """Answer the samples of one task, or of a shard, in every cell; write the records, one row per sample and cell.

    What the store holds already is not computed again. A sample that cannot be made, scored or fitted into memory is
    recorded as failed in every cell, with the reason; returns how many are.
    """
    run = _Run(job)
    with closing(run.store):
        with run.progress:
            run.answer()
        write_parquet_rows(job.records, run.rows(), COLUMNS, schema=SCHEMA)
        answered = (row for row in run.rows() if not row["failed"])
        write_parquet_rows(job.timings, answered, timings.COLUMNS, schema=timings.SCHEMA)
    for index, reason in run.failed.items():
        tqdm.write(f"task {job.task.name}: sample {index} failed: {reason}")
    return len(run.failed)


class _Run:
    """One job under way; memory does not grow with the number of samples, but for their keys."""

    def __init__(self, job: EvaluateJob):
        self._job = job
        self._task = job.task.build()
        self._task.check()  # once more: a node of a cluster may lack what there was where the workflow was planned
        self._samples = job.shard.samples(self._task.n_samples(job.evaluate.n_samples))
        model, tokenizer = job.model, load_tokenizer(job.model)
        self._prompts = Prompts(model.name, tokenizer, self._task, job.evaluate, model.chat_template_kwargs)
        self._cells = _cells(job)
        self._places = {id(cell): place for place, cell in enumerate(self._cells)}
        self.store = _store(job)
        self._keys: dict[int, list[str]] = {}  # of each sample, one per cell; none where it failed
        self.failed: dict[int, str] = {}
        self._scores = {cell: [0.0, 0] for cell in range(len(self._cells))}
        name = f"evaluate {job.model.name} {self._task.name}"
        self.progress = tqdm(total=len(self._samples) * len(self._cells), desc=name, unit="answer")

    @cached_property
    def _model(self) -> LoadedModel:
        return load_model(self._job.model)

    @cached_property
    def engine(self) -> Engine:
        """Made with the first piece of work: a run that finds everything in the store loads no model."""
        return Engine(self._model, self._task, self._job.evaluate)

    @cached_property
    def _fingerprints(self) -> list[str]:
        """Of each cell, with everything but the sample that determines an answer."""
        job = self._job
        shared = [
            model_identity(job.model),
            job.task.model_dump(mode="json"),
            job.evaluate.protocol,
            job.evaluate.chat_template,
        ]
        return [cell.fingerprint(*shared) for cell in self._cells]

    def _keys_of(self, sample: Sample, tokens: Tokens) -> list[str]:
        """The tokens stand for all that makes them: tokenizer, chat template, its variables, the date."""
        digest = fingerprint(asdict(sample), tokens)
        return [f"{one}-{digest}" for one in self._fingerprints]

    def missing(self) -> Iterator[EncodedSample]:
        """What the store does not hold yet, sample by sample."""
        for index in self._samples:
            try:
                sample = self._sample(index)
                if not self._task.by_loss:  # are these answers that the metric can work with?
                    self._task.score("", sample.answers, sample.all_classes)
                tokens = self._prompts.tokens(sample)
            except DataError:
                raise
            except UserError as error:
                self.failed[index] = str(error)
                self._keys[index] = []
                self.progress.update(len(self._cells))
                continue
            keys = self._keys_of(sample, tokens)
            self._keys[index] = keys
            missing = [cell for cell, key in zip(self._cells, keys, strict=True) if key not in self.store]
            self.progress.update(len(keys) - len(missing))
            if missing:
                engine = self.engine  # what is wrong with all samples is no failure of one
                try:
                    work = engine.work(sample, missing, tokens)
                except UserError as error:
                    self.failed[index] = str(error)
                    self.progress.update(len(missing))
                else:
                    yield work

    def answer(self) -> None:
        """Everything that is missing; no model is loaded where nothing is."""
        missing = self.missing()
        if (first := next(missing, None)) is None:
            return
        answered: list[CellResult] = []
        saved = time.monotonic()
        try:
            for answers in self.engine.answers(chain([first], missing)):
                answered += answers
                if len(answered) >= self._job.evaluate.batch_rows or time.monotonic() - saved > SAVE_SECONDS:
                    self.keep(answered)
                    answered, saved = [], time.monotonic()
        finally:
            self.keep(answered)

    def _sample(self, index: int) -> Sample:
        settings = self._job.evaluate
        return self._task.sample(
            split="evaluation",
            seed=settings.seed,
            index=index,
            length=settings.length,
            count_tokens=self._prompts.encoder.count,
        )

    def keep(self, answers: list[CellResult]) -> None:
        """Put answers in the store, and show how the scores stand."""
        entries = {}
        for one in answers:
            if one.failed:
                self.failed.setdefault(one.work.sample.index, one.failed)
                continue
            place = self._places[id(one.cell)]
            entries[self._keys[one.work.sample.index][place]] = one.record
            self._scores[place][0] += one.record["score"]
            self._scores[place][1] += 1
        self.store.add(entries)
        self.progress.update(len(answers))
        means = {self._cells[place].label: total / n for place, (total, n) in self._scores.items() if n}
        if means:
            lowest = min(means, key=lambda label: means[label])
            full = f"full {means['full']:.2f}, " if "full" in means else ""
            self.progress.set_postfix_str(f"{full}lowest {means[lowest]:.2f} ({lowest})")

    def rows(self) -> Iterator[dict[str, Any]]:
        """All records, by sample and cell, with the seconds of those that were answered."""
        job = self._job
        constant = {
            "model": job.model.name,
            "task": self._task.name,
            "protocol": job.evaluate.protocol,
            "seed": job.evaluate.seed,
            "length": job.evaluate.length,
        }
        for index, keys in self._keys.items():
            for place, cell in enumerate(self._cells):
                which = {"allocator": cell.allocator, "eviction": cell.eviction, "ratio": cell.ratio, "sample": index}
                if index in self.failed:
                    record = failed_record(self.failed[index])
                else:
                    record = {"failed": "", "loss": math.nan, **self.store[keys[place]]}
                yield {**constant, **which, **record}


def _store(job: EvaluateJob) -> AppendLog:
    """Each shard adds to a file of its own, so that no two jobs write to one, and looks into all."""
    whole, folder = job.store, job.store.with_suffix("")
    own = whole if job.shard.of == 1 else folder / f"{job.shard}.lines"
    others = [path for path in (whole, *sorted(folder.glob("*.lines"))) if path != own and path.is_file()]
    return AppendLog(own, others, alone=True)


def _cells(job: EvaluateJob) -> list[CellSpec]:
    """The full cache, then the job's cells; their budgets tell the model's shape without loading it."""
    if job.cells:
        n_layers, n_kv_heads = Budgets.load(job.cells[0].path).shape
    else:
        loaded = load_model(job.model)
        n_layers, n_kv_heads = loaded.n_layers, loaded.n_kv_heads
    return cell_specs(job.cells, job.evictions, n_layers=n_layers, n_kv_heads=n_kv_heads)
