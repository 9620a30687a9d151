"""Safetensors files: their header holds plain values, whatever it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from baklava.system.tensors import read_tensors, write_tensors


def test_numbers_of_numpy_and_paths_in_the_header(tmp_path: Path) -> None:
    path, values = tmp_path / "x.safetensors", np.arange(6, dtype=np.float32).reshape(2, 3)
    header = {"loss": np.float32(0.5), "seed": np.int64(3), "bad": np.nan, "model": {"path": Path("a b")}}
    write_tensors(path, {"values": values}, header, schema=1, what="thing")
    found, arrays = read_tensors(path, schema=1, what="thing", hint="hand")
    assert found == {"loss": 0.5, "seed": 3, "bad": None, "model": {"path": "a b"}}
    assert arrays["values"].tolist() == values.tolist()
