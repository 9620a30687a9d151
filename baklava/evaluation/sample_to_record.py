"""Where a sample becomes a record: begun with what is known before it is answered, and finished with its score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from baklava.evaluation.record_schema import Record
from baklava.evaluation.samples import CellSpec, EncodedSample, Request
from baklava.experiment.settings import EvaluateConfig
from baklava.models.load import LoadedModel
from baklava.system.fingerprint import fingerprint
from baklava.tasks import Sample, Task


def begin_record(
    loaded: LoadedModel, task: Task, settings: EvaluateConfig, encoded: EncodedSample, cell: CellSpec, entry_bytes: int
) -> Request:
    """The request to answer a sample in a cell; an entry's key and value take `entry_bytes`."""
    n_entries = loaded.n_layers * loaded.n_kv_heads * len(encoded.context)
    record = Record.of(
        cell.identify(loaded.name, task.name, settings),
        encoded.sample.index,
        **asked(encoded.sample, encoded.turn),
        context_tokens=len(encoded.context),
        answers=encoded.sample.answers,
        group=encoded.sample.group,
        total_entries=n_entries,
        kv_bytes_full=n_entries * entry_bytes,
    )
    return Request(encoded, cell, record)


def asked(sample: Sample, turn: int) -> dict[str, Any]:
    """What a record says of what was asked: a name that samples about one context share, the question, its turn."""
    return {"context": fingerprint(sample.context)[:12], "question": sample.question, "turn": turn}


def score_answer(loaded: LoadedModel, task: Task, request: Request, tokens: Sequence[int], seconds: float) -> Record:
    """The record of a generated answer, with its score."""
    sample = request.encoded.sample
    prediction = loaded.decode(tokens)
    score = task.score(prediction, sample.answers, sample.all_classes)
    n_read = len(request.encoded.question) + min(len(tokens), sample.max_new_tokens - 1)  # the last is not read
    peak = _peak_bytes(request, n_read)
    record = replace(request.record, prediction=prediction, score=score, seconds=seconds, peak_kv_bytes=peak)
    return _checked(record)


def score_loss(request: Request, loss: float, seconds: float) -> Record:
    """The record of an answer that was read: its loss per token, and as score the geometric mean probability."""
    peak = _peak_bytes(request, request.encoded.n_after_context - 1)
    return _checked(replace(request.record, score=math.exp(-loss), loss=loss, seconds=seconds, peak_kv_bytes=peak))


def _peak_bytes(request: Request, n_read: int) -> int:
    """Bytes of keys and values at the end of an answer, for which `n_read` tokens were read after the context."""
    record = request.record
    if request.decoding == "fixed":
        return record.kv_bytes
    return record.kv_bytes + n_read * record.kv_bytes_full // record.context_tokens


def _checked(record: Record) -> Record:
    """The record, failed where its score is NaN or infinite."""
    if math.isfinite(record.score):
        return record
    return record.fail(f"its score is {record.score}; try another model.dtype")


def fail_out_of_memory(requests: Iterable[Request]) -> list[Record]:
    """Failed records of samples that could not be read or answered because memory ran out."""
    return [
        request.record.fail(
            f"{len(request.encoded.context)} tokens of context do not fit into memory; lower evaluate.length"
        )
        for request in requests
    ]
