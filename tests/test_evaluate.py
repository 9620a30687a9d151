"""The job: one row per sample and cell, nothing computed twice, failures counted and not in the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from baklava.budgets import Budgets
from baklava.cells import read_cells
from baklava.engine import Engine
from baklava.errors import UserError
from baklava.evaluate import evaluate
from baklava.jobs import EvaluateJob
from baklava.records import COLUMNS

LENGTH = 400


def job(folder: Path, ratios: tuple[float, ...] = (0.5,), **changed: Any) -> EvaluateJob:
    """Three samples with the full cache and with uniform budgets."""
    cells = []
    for ratio in ratios:
        path = folder / f"{ratio}.json"
        Budgets.uniform(n_layers=6, n_kv_heads=4, ratio=ratio).save(path)
        cells.append({"allocator": "uniform", "eviction": "streaming_llm", "ratio": ratio, "path": str(path)})
    values: dict[str, Any] = {
        "model": {"name": "tiny-llama", "path": "reference:tiny-llama", "dtype": "float32"},
        "task": {"name": "needle", "family": "niah", "max_new_tokens": 12},
        "evictions": {"streaming_llm": {"name": "streaming_llm", "family": "streaming_llm"}},
        "evaluate": {"n_samples": 3, "length": LENGTH},
        "cells": cells,
        "store": str(folder / "store.lines"),
        "records": str(folder / "records.parquet"),
        "timings": str(folder / "timings.parquet"),
    }
    return EvaluateJob.model_validate({**values, **changed})


def run(one: EvaluateJob, monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[Any, ...]], list[dict[str, Any]]]:
    """The (sample, cell) pairs that were computed, and the records."""
    computed = []
    answers = Engine.answers

    def watched(self: Engine, batch: Any) -> Any:
        for some in answers(self, batch):
            computed.extend((answer.work.sample.index, answer.cell.label) for answer in some)
            yield some

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "answers", watched)
        evaluate(one)
    return computed, pq.read_table(one.records).to_pylist()


def test_writes_one_row_per_sample_and_cell(tmp_path: Path) -> None:
    assert evaluate(job(tmp_path)) == 0
    table = pq.read_table(tmp_path / "records.parquet")
    assert table.schema.equals(COLUMNS)
    assert table.schema.metadata[b"schema_version"] == b"3"
    keys = [(row["sample"], row["allocator"], row["ratio"]) for row in table.to_pylist()]
    assert keys == [(i, *cell) for i in range(3) for cell in (("full", 0.0), ("uniform", 0.5))]
    times = pq.read_table(tmp_path / "timings.parquet").to_pylist()
    assert [(row["sample"], row["allocator"], row["ratio"]) for row in times] == keys
    assert all(row["seconds"] > 0 for row in times)


def test_budgets_of_another_ratio_are_refused(tmp_path: Path) -> None:
    one = job(tmp_path)
    wrong = one.model_copy(update={"cells": (one.cells[0].model_copy(update={"ratio": 0.7}),)})
    with pytest.raises(UserError, match=r"0\.5\.json: budgets for ratio 0\.5, expected 0\.7"):
        evaluate(wrong)


def test_a_second_run_computes_nothing_and_loads_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, first = run(job(tmp_path), monkeypatch)
    assert len(computed) == 6
    monkeypatch.setattr("baklava.evaluate.load_model", None)
    computed, second = run(job(tmp_path), monkeypatch)
    assert (computed, second) == ([], first)


def test_a_new_ratio_or_sample_computes_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = run(job(tmp_path), monkeypatch)
    computed, _ = run(job(tmp_path, (0.5, 0.8)), monkeypatch)
    assert computed == [(i, "uniform/streaming_llm r=0.8") for i in range(3)]
    more = job(tmp_path, evaluate={"n_samples": 4, "length": LENGTH})
    computed, records = run(more, monkeypatch)
    assert {index for index, _ in computed} == {3}
    assert records[:6] == first


@pytest.mark.parametrize(
    "changed",
    [
        {"evaluate": {"n_samples": 3, "length": LENGTH, "seed": 1}},
        {"evaluate": {"n_samples": 3, "length": LENGTH, "protocol": "question_aware"}},
        {"evaluate": {"n_samples": 3, "length": 350}},
        {"task": {"name": "needle", "family": "niah", "max_new_tokens": 5}},
        {"model": {"name": "tiny-llama", "path": "reference:tiny-llama", "dtype": "bfloat16"}},
    ],
    ids=str,
)
def test_whatever_determines_the_answers_is_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    run(job(tmp_path), monkeypatch)
    computed, _ = run(job(tmp_path, **changed), monkeypatch)
    assert len(computed) == 6
    computed, _ = run(job(tmp_path), monkeypatch)  # and what was there before still is
    assert computed == []


def test_batch_size_is_no_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(job(tmp_path), monkeypatch)
    other = job(tmp_path, evaluate={"n_samples": 3, "length": LENGTH, "batch_rows": 1})
    assert run(other, monkeypatch)[0] == []


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(job(tmp_path), monkeypatch)[1]
    lines = (tmp_path / "store.lines").read_bytes().splitlines(keepends=True)
    (tmp_path / "store.lines").write_bytes(b"".join(lines[:4]) + lines[4][:30])  # header, three answers and a part
    (tmp_path / "records.parquet").unlink()
    computed, records = run(job(tmp_path), monkeypatch)
    assert len(computed) == 3
    assert records == expected


def test_a_sample_that_cannot_be_made_is_recorded_and_the_others_answered(tmp_path: Path) -> None:
    good = {"context": "The boats left. ", "question": "Good?", "answer_prefix": " It is", "answers": ["good", "fine"]}
    rows = [good, {**good, "answers": 7}, good]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps({**row, "max_new_tokens": 2}) + "\n" for row in rows))
    task = {"name": "mine", "family": "jsonl", "data": str(data), "metric": "string_match_all"}
    assert evaluate(job(tmp_path, task=task, evaluate={"n_samples": 64, "length": LENGTH})) == 1
    records = pq.read_table(tmp_path / "records.parquet").to_pylist()
    assert [one["sample"] for one in records] == [0, 0, 1, 1, 2, 2]
    assert [bool(one["failed"]) for one in records] == [False, False, True, True, False, False]
    assert "mine.jsonl, line 2: answers: expected a list of texts" in records[2]["failed"]
    assert [(len(one.sample), one.n_failed) for one in read_cells([tmp_path / "records.parquet"]).values()] == [
        (2, 1)
    ] * 2
