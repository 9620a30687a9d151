"""Shards: the same records as from one job, and nothing computed twice when their number changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.evaluation.engine import Engine
from baklava.evaluation.merge import merge
from baklava.evaluation.run import evaluate
from baklava.experiment.jobs import EvaluateJob, MergeJob

N_SAMPLES = 5


def job(folder: Path, name: str, **changed: Any) -> EvaluateJob:
    """Five samples with the full cache and at half the memory; stores lie in `folder`, records are called `name`."""
    budgets = folder / "0.5.json"
    Budgets.uniform(n_layers=6, n_kv_heads=4, ratio=0.5).save(budgets)
    values: dict[str, Any] = {
        "model": {"name": "tiny-llama", "path": "reference:tiny-llama", "dtype": "float32"},
        "task": {"name": "needle", "family": "niah", "max_new_tokens": 6},
        "evictions": {"streaming_llm": {"name": "streaming_llm", "family": "streaming_llm"}},
        "evaluate": {"n_samples": N_SAMPLES, "length": 300},
        "cells": [{"allocator": "uniform", "eviction": "streaming_llm", "ratio": 0.5, "path": str(budgets)}],
        "store": str(folder / "needle.lines"),
        "records": str(folder / f"{name}.parquet"),
        "timings": str(folder / f"{name}.timings.parquet"),
    }
    return EvaluateJob.model_validate({**values, **changed})


def sharded(folder: Path, n_shards: int) -> MergeJob:
    """So many jobs, and their records and timings merged."""
    shards = [job(folder, f"shard{i}", shard={"index": i, "of": n_shards}) for i in range(n_shards)]
    for one in shards:
        assert evaluate(one) == 0
    merged = MergeJob(
        records_of_shards=tuple(one.records for one in shards),
        timings_of_shards=tuple(one.timings for one in shards),
        records=folder / f"merged{n_shards}.parquet",
        timings=folder / f"merged{n_shards}.timings.parquet",
    )
    merge(merged)
    return merged


def test_merged_records_are_those_of_one_job_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    whole = job(tmp_path / "one", "whole")
    evaluate(whole)
    assert pq.read_metadata(whole.records).num_rows == 2 * N_SAMPLES
    merged = sharded(tmp_path / "many", 3)
    assert merged.records.read_bytes() == whole.records.read_bytes()


def test_another_number_of_shards_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = sharded(tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / "needle").iterdir()) == ["0-of-2.lines", "1-of-2.lines"]
    monkeypatch.setattr(Engine, "answer", None)
    whole = job(tmp_path, "whole")
    evaluate(whole)
    seven = sharded(tmp_path, 7)  # two of them have no sample
    for one in (whole, seven):
        assert one.records.read_bytes() == two.records.read_bytes()
        assert one.timings.read_bytes() == two.timings.read_bytes()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    missing = (tmp_path / "1-of-2.parquet",)
    merged = tmp_path / "records.parquet"
    one = MergeJob(records_of_shards=missing, timings_of_shards=missing, records=merged, timings=tmp_path / "timings")
    with pytest.raises(UserError, match=r"1-of-2\.parquet: no such records file"):
        merge(one)
    assert list(tmp_path.iterdir()) == []
