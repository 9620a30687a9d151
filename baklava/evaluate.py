"""The evaluation engine: one prefill per sample, all cells decoded from it as rows of ragged batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.eviction import EvictionPolicy, StreamingLLM
from baklava.generation import compressed_rows, greedy_answers, prefill
from baklava.jobs import EvaluateJob
from baklava.models.load import LoadedModel, load_model
from baklava.parquet import write_parquet
from baklava.records import COLUMNS, SCHEMA
from baklava.tasks import Sample, Task


@dataclass(frozen=True)
class Compression:
    """A way to compress; `full` is the uncompressed cache."""

    allocator: str
    eviction: str
    ratio: float
    budgets: Budgets
    policy: EvictionPolicy


def _cells(job: EvaluateJob, loaded: LoadedModel) -> list[Compression]:
    full = Budgets.uniform(n_layers=loaded.n_layers, n_kv_heads=loaded.n_kv_heads, ratio=0.0)
    cells = [Compression("full", "none", 0.0, full, StreamingLLM())]
    for one in job.cells:
        budgets = Budgets.load(one.path)
        if budgets.ratio != one.ratio:
            raise UserError(f"{one.path}: budgets for ratio {budgets.ratio:g}, expected {one.ratio:g}")
        cells.append(Compression(one.allocator, one.eviction, one.ratio, budgets, job.evictions[one.eviction].build()))
    return cells


def _split(sample: Sample, loaded: LoadedModel, protocol: str) -> tuple[list[int], list[int]]:
    """What is compressed and what is read after it, as token ids.

    The answer prefix is always read after compression: the cache needs at least one token to go on from.
    """
    if protocol == "question_agnostic":
        return loaded.encode(sample.context, begin=True), loaded.encode(sample.question + sample.answer_prefix)
    return loaded.encode(sample.context + sample.question, begin=True), loaded.encode(sample.answer_prefix)


def evaluate_sample(
    loaded: LoadedModel, task: Task, sample: Sample, cells: Sequence[Compression], *, protocol: str, batch_rows: int
) -> Iterator[dict[str, Any]]:
    """One record per cell. Predictions do not depend on how the cells are split into batches."""
    started = time.perf_counter()
    context, question = _split(sample, loaded, protocol)
    full = prefill(loaded, context, [cell.policy for cell in cells])
    per_cell_prefill = (time.perf_counter() - started) / len(cells)
    for start in range(0, len(cells), batch_rows):
        some = cells[start : start + batch_rows]
        started = time.perf_counter()
        cache = compressed_rows(loaded, full, [cell.budgets for cell in some], [cell.policy for cell in some])
        kept, sizes = cache.kept_entries().sum((0, 2)).tolist(), cache.row_bytes().tolist()
        answers = greedy_answers(loaded, cache, question, max_new_tokens=sample.max_new_tokens)
        seconds = (time.perf_counter() - started) / len(some) + per_cell_prefill
        for cell, tokens, n_kept, n_bytes in zip(some, answers, kept, sizes, strict=True):
            prediction = loaded.decode(tokens)
            yield {
                "allocator": cell.allocator,
                "eviction": cell.eviction,
                "ratio": cell.ratio,
                "sample": sample.index,
                "context_tokens": len(context),
                "prediction": prediction,
                "answers": list(sample.answers),
                "score": task.score(prediction, sample.answers, sample.all_classes),
                "kept_entries": n_kept,
                "total_entries": loaded.n_layers * loaded.n_kv_heads * len(context),
                "kv_bytes": n_bytes,
                "kv_bytes_full": full.kv_bytes(),
                "seconds": seconds,
            }


def evaluate(job: EvaluateJob) -> None:
    """Answer the samples of one task in every cell and write the records, one row per sample and cell."""
    settings = job.evaluate
    loaded = load_model(job.model)
    cells = _cells(job, loaded)
    task = job.task.build()
    constant = {
        "model": job.model.name,
        "task": task.name,
        "protocol": settings.protocol,
        "seed": settings.seed,
        "length": settings.length,
    }
    records: list[dict[str, Any]] = []
    totals = [0.0] * len(cells)
    n_samples = task.n_samples(settings.n_samples)
    with tqdm(range(n_samples), desc=f"evaluate {job.model.name} {task.name}", unit="sample") as progress:
        for index in progress:
            sample = task.sample(
                split="evaluation",
                seed=settings.seed,
                index=index,
                length=settings.length,
                count_tokens=loaded.count_tokens,
            )
            rows = evaluate_sample(
                loaded, task, sample, cells, protocol=settings.protocol, batch_rows=settings.batch_rows
            )
            for place, record in enumerate(rows):
                totals[place] += record["score"]
                records.append({**constant, **record})
            progress.set_postfix(full=f"{totals[0] / (index + 1):.2f}", worst=f"{min(totals) / (index + 1):.2f}")
    write_parquet(job.records, pa.Table.from_pylist(records, schema=COLUMNS), schema=SCHEMA)
