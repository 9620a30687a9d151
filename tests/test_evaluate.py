"""Records do not depend on how cells are batched or ordered; bytes and entries are the true ones."""

import pytest

from baklava.budgets import Budgets
from baklava.config import ModelConfig
from baklava.errors import UserError
from baklava.evaluate import Compression, evaluate, evaluate_sample
from baklava.eviction import StreamingLLM
from baklava.jobs import EvaluateJob
from baklava.models.load import load_model
from baklava.records import COLUMNS
from baklava.tasks import NeedleInHaystack

LENGTH = 400
TASK = NeedleInHaystack(name="needle", max_new_tokens=12)


@pytest.fixture(scope="module")
def loaded():
    return load_model(ModelConfig(name="tiny-llama", path="reference:tiny-llama", dtype="float32"))


@pytest.fixture(scope="module")
def cells(loaded):
    shape = {"n_layers": loaded.n_layers, "n_kv_heads": loaded.n_kv_heads}
    ratios = (0.0, 0.3, 0.6, 0.9)
    return [
        Compression(f"u{ratio}", "streaming_llm", ratio, Budgets.uniform(**shape, ratio=ratio), StreamingLLM())
        for ratio in ratios
    ]


def records(loaded, cells, *, batch_rows, protocol="question_agnostic", index=0):
    sample = TASK.sample(split="train", seed=0, index=index, length=LENGTH, count_tokens=loaded.count_tokens)
    found = list(evaluate_sample(loaded, TASK, sample, cells, protocol=protocol, batch_rows=batch_rows))
    return {record["allocator"]: {k: v for k, v in record.items() if k != "seconds"} for record in found}


def test_records_do_not_depend_on_batches_or_order(loaded, cells):
    together = records(loaded, cells, batch_rows=4)
    assert records(loaded, cells, batch_rows=1) == together
    assert records(loaded, cells[::-1], batch_rows=3) == together


def test_entries_and_bytes_are_those_of_the_ratio(loaded, cells):
    for record in records(loaded, cells, batch_rows=4).values():
        total = loaded.n_layers * loaded.n_kv_heads * record["context_tokens"]
        assert record["total_entries"] == total
        assert record["kept_entries"] == round((1 - record["ratio"]) * total)
        entry = 2 * loaded.model.config.head_dim * 4
        assert record["kv_bytes"] == record["kept_entries"] * entry
        assert record["kv_bytes_full"] == total * entry


def test_the_full_cell_answers_as_plain_generate(loaded, cells):
    import torch

    sample = TASK.sample(split="train", seed=0, index=3, length=LENGTH, count_tokens=loaded.count_tokens)
    ids = loaded.encode(sample.context, begin=True) + loaded.encode(sample.question + sample.answer_prefix)
    made = loaded.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    expected = loaded.tokenizer.decode(made, skip_special_tokens=True)
    assert records(loaded, cells[:1], batch_rows=1, index=3)["u0.0"]["prediction"] == expected


def test_question_aware_compresses_the_question_too(loaded, cells):
    agnostic, aware = (
        records(loaded, cells[1:2], batch_rows=1, protocol=protocol)["u0.3"]
        for protocol in ("question_agnostic", "question_aware")
    )
    assert aware["context_tokens"] > agnostic["context_tokens"]


def test_the_job_writes_one_row_per_sample_and_cell(tmp_path, loaded):
    import pyarrow.parquet as pq

    path = tmp_path / "b.json"
    Budgets.uniform(n_layers=loaded.n_layers, n_kv_heads=loaded.n_kv_heads, ratio=0.5).save(path)
    job = {
        "model": {"name": "tiny-llama", "path": "reference:tiny-llama", "dtype": "float32"},
        "task": {"name": "needle", "family": "niah", "max_new_tokens": 12},
        "evictions": {"streaming_llm": {"name": "streaming_llm", "family": "streaming_llm"}},
        "evaluate": {"n_samples": 3, "length": LENGTH},
        "cells": [{"allocator": "uniform", "eviction": "streaming_llm", "ratio": 0.5, "path": str(path)}],
        "records": str(tmp_path / "r.parquet"),
    }
    evaluate(EvaluateJob.model_validate(job))
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.schema.equals(COLUMNS)
    assert table.schema.metadata[b"schema_version"] == b"1"
    keys = [(row["sample"], row["allocator"], row["ratio"]) for row in table.to_pylist()]
    assert keys == [(i, *cell) for i in range(3) for cell in (("full", 0.0), ("uniform", 0.5))]

    job["cells"][0]["ratio"] = 0.7
    with pytest.raises(UserError, match=r"b\.json: budgets for ratio 0\.5, expected 0\.7"):
        evaluate(EvaluateJob.model_validate(job))


def test_a_task_with_few_samples_gives_all_of_them(tmp_path):
    import json

    import pyarrow.parquet as pq

    data = tmp_path / "mine.jsonl"
    row = {"context": "The boats left. ", "question": "Good?", "answer_prefix": " It is", "answers": ["good", "fine"]}
    rows = [{**row, "all_classes": ["good", "bad"], "max_new_tokens": 2} for _ in range(2)]
    data.write_text("".join(json.dumps(one) + "\n" for one in rows))
    job = {
        "model": {"name": "tiny-llama", "path": "reference:tiny-llama", "dtype": "float32"},
        "task": {"name": "mine", "family": "jsonl", "data": str(data), "metric": "classification"},
        "evictions": {},
        "evaluate": {"n_samples": 64, "length": LENGTH},
        "cells": [],
        "records": str(tmp_path / "r.parquet"),
    }
    evaluate(EvaluateJob.model_validate(job))
    assert [one["sample"] for one in pq.read_table(tmp_path / "r.parquet").to_pylist()] == [0, 1]
