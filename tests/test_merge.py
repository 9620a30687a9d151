"""Shards: the same records as from one job, and nothing computed twice when their number changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from baklava.budgets import Budgets
from baklava.engine import Engine
from baklava.errors import UserError
from baklava.evaluate import evaluate
from baklava.jobs import EvaluateJob, MergeJob
from baklava.merge import merge

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
    }
    return EvaluateJob.model_validate({**values, **changed})


def sharded(folder: Path, n_shards: int) -> Path:
    """The records of so many jobs, merged."""
    shards = [job(folder, f"shard{i}", shard={"index": i, "of": n_shards}) for i in range(n_shards)]
    for one in shards:
        assert evaluate(one) == 0
    merged = folder / f"merged{n_shards}.parquet"
    merge(MergeJob(shards=tuple(one.records for one in shards), records=merged))
    return merged


def timeless(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).drop_columns("seconds").to_pylist()


def test_merged_records_are_those_of_one_job(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    whole = job(tmp_path / "one", "whole")
    evaluate(whole)
    merged = sharded(tmp_path / "many", 3)
    assert len(timeless(merged)) == 2 * N_SAMPLES
    assert timeless(merged) == timeless(whole.records)


def test_another_number_of_shards_computes_nothing_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = sharded(tmp_path, 2).read_bytes()
    assert sorted(path.name for path in (tmp_path / "needle").iterdir()) == ["0-of-2.lines", "1-of-2.lines"]
    monkeypatch.setattr(Engine, "answers", None)
    whole = job(tmp_path, "whole")
    evaluate(whole)
    assert whole.records.read_bytes() == two
    assert sharded(tmp_path, 7).read_bytes() == two  # two of them have no sample


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1-of-2\.parquet: no such records file"):
        merge(MergeJob(shards=(tmp_path / "1-of-2.parquet",), records=tmp_path / "records.parquet"))
    assert list(tmp_path.iterdir()) == []
