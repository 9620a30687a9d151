"""Scores of a needle grid, read back from its records: which depths of which lengths were answered."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from baklava.errors import UserError
from baklava.evaluation.records import COLUMNS, FULL, SCHEMA
from baklava.system.parquet import read_parquet

GridCell = tuple[str, str, float]  # allocator, eviction, ratio

_COLUMNS = pa.schema([COLUMNS.field(name) for name in ("allocator", "eviction", "ratio", "group", "score", "failed")])
_GROUP = re.compile(r"length (\d+), depth ([\d.e-]+)")  # as `baklava.tasks.ruler.needle_grid` writes it


@dataclass(frozen=True, eq=False)
class DepthByLength:
    """Mean scores per cell (allocator, eviction, ratio), each `[depths, lengths]`; NaN where no sample was answered.

    `lengths` are in tokens, `depths` the share of the text that comes before the needle.
    """

    depths: tuple[float, ...]
    lengths: tuple[int, ...]
    scores: dict[GridCell, NDArray[np.float64]]

    @property
    def length_labels(self) -> list[str]:
        return [str(length) for length in self.lengths]

    @property
    def depth_labels(self) -> list[str]:
        return [f"{depth:g}" for depth in self.depths]

    def by_method(self) -> dict[tuple[str, str], list[GridCell]]:
        """Cells of every method (allocator, eviction), the full cache and then the ratios in order.

        Where nothing is compressed, the full cache is a method by itself.
        """
        full = [cell for cell in self.scores if cell[0] == FULL]
        methods = sorted({cell[:2] for cell in self.scores} - {cell[:2] for cell in full})
        own = {method: sorted(cell for cell in self.scores if cell[:2] == method) for method in methods}
        return {method: [*full, *cells] for method, cells in own.items()} or {cell[:2]: [cell] for cell in full}


def read_depth_by_length(path: Path) -> DepthByLength:
    """Raises `UserError` for a missing or broken file, and for records of another kind of task."""
    records = read_parquet(path, _COLUMNS, schema=SCHEMA, what="records", hint="`baklava evaluate`").to_pandas()
    answered = records[records["failed"] == ""]
    places = {group: _place(group, path) for group in answered["group"].unique()}
    depths = sorted({depth for _, depth in places.values()})
    lengths = sorted({length for length, _ in places.values()})
    placed = answered.assign(
        length=[places[group][0] for group in answered["group"]],
        depth=[places[group][1] for group in answered["group"]],
    )
    scores = {}
    for (allocator, eviction, ratio), rows in placed.groupby(["allocator", "eviction", "ratio"]):
        scores[str(allocator), str(eviction), float(ratio)] = _grid(rows, depths, lengths)
    return DepthByLength(tuple(depths), tuple(lengths), scores)


def _grid(rows: pd.DataFrame, depths: list[float], lengths: list[int]) -> NDArray[np.float64]:
    means = rows.pivot_table(index="depth", columns="length", values="score", aggfunc="mean")
    return means.reindex(index=depths, columns=lengths).to_numpy(np.float64)


def _place(group: str, path: Path) -> tuple[int, float]:
    found = _GROUP.fullmatch(group)
    if found is None:
        raise UserError(f"{path}: group {group!r} names no length and depth; only needle grids have a heat map")
    return int(found[1]), float(found[2])
