"""Needle grids read back from records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_results import cell_records, write_records

from baklava.analysis.depth_by_length import read_depth_by_length
from baklava.errors import UserError
from baklava.tasks.ruler.needle_grid import NeedleGrid


def test_groups_are_read_as_the_task_writes_them(tmp_path: Path) -> None:
    task = NeedleGrid(name="needle_grid", depths=(0.0, 1 / 3), lengths=(0.5, 1.0))
    groups = [
        task.sample(split="evaluation", seed=0, index=i, length=900, count_tokens=lambda text: len(text.split())).group
        for i in range(task.n_cells)
    ]
    path = write_records(tmp_path / "r.parquet", cell_records([0.1, 0.2, 0.3, 0.4], group=groups))
    grid = read_depth_by_length(path)
    assert (grid.lengths, grid.depths) == ((450, 900), (0.0, pytest.approx(1 / 3, abs=1e-6)))
    assert grid.scores["full", "none", 0.0].tolist() == [[0.1, 0.3], [0.2, 0.4]]


def test_samples_of_a_place_are_averaged_and_failed_ones_left_out(tmp_path: Path) -> None:
    groups = ["length 100, depth 0", "length 100, depth 0", "length 100, depth 1", ""]
    records = pd.concat(
        [
            cell_records([1.0, 0.5, 0.0, 0.0], group=groups, failed=["", "", "", "too long"]),
            cell_records([1.0, 0.0, 0.0, 0.0], allocator="uniform", ratio=0.5, group=groups).assign(
                failed=["", "", "no", "no"]
            ),
        ]
    )
    grid = read_depth_by_length(write_records(tmp_path / "r.parquet", records))
    assert grid.scores["full", "none", 0.0].tolist() == [[0.75], [0.0]]
    first, second = grid.scores["uniform", "streaming_llm", 0.5][:, 0]
    assert first == 0.5
    assert np.isnan(second)


def test_records_of_another_task_are_refused_by_name(tmp_path: Path) -> None:
    path = write_records(tmp_path / "vt.parquet", cell_records([1.0]))
    with pytest.raises(UserError, match=r"vt\.parquet: group '' names no length and depth"):
        read_depth_by_length(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needle_grid\.parquet: no such records file"):
        read_depth_by_length(tmp_path / "needle_grid.parquet")
