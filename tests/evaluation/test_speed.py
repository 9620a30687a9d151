"""Measurements: one row per cell, bytes that are the true ones."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from baklava import reference_model_path
from baklava.budgets import Budgets
from baklava.evaluation.measurements import COLUMNS
from baklava.evaluation.speed import measure
from baklava.experiment.jobs import MeasureJob


@pytest.mark.parametrize("decoding", ["grow", "fixed"])
def test_every_cell_has_its_bytes_and_speeds(tmp_path: Path, decoding: str) -> None:
    path = tmp_path / "0.75.json"
    Budgets.uniform(n_layers=6, n_kv_heads=4, ratio=0.75).save(path)
    job = {
        "model": {"name": "tiny-llama", "path": "reference:tiny-llama", "dtype": "float32", "device": "cpu"},
        "evictions": {"snapkv": {"name": "snapkv", "family": "snapkv"}},
        "measure": {"context": 400, "batch": 2, "tokens": 2, "repeats": 1},
        "cells": [{"allocator": "uniform", "eviction": "snapkv", "ratio": 0.75, "path": str(path)}],
        "decoding": decoding,
        "output": str(tmp_path / "m.parquet"),
    }
    measure(MeasureJob.model_validate(job))
    table = pq.read_table(tmp_path / "m.parquet")
    assert table.schema.equals(COLUMNS)
    full, quarter = table.to_pylist()
    assert (full["allocator"], quarter["allocator"], quarter["ratio"]) == ("full", "uniform", 0.75)
    config = json.loads((reference_model_path("tiny-llama") / "config.json").read_text())
    entry = 2 * config["head_dim"] * 4
    tail = 2 * 24 * 64 * entry  # rows, KV caches, room for later tokens
    assert full["kv_bytes"] == 2 * 24 * 400 * entry + tail
    assert quarter["kv_bytes"] == 2 * 24 * 100 * entry + (tail if decoding == "grow" else 0)
    for row in (full, quarter):
        assert 0 < row["prefill_seconds"] <= row["first_token_seconds"]
        assert row["tokens_per_second"] > 0
        assert (row["context"], row["batch"], row["device"]) == (400, 2, "cpu")
