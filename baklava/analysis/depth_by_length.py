"""Read a needle grid's scores by depth and length from its records."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from baklava.errors import UserError
from baklava.evaluation.record_schema import COLUMNS, FULL, SCHEMA
from baklava.system.parquet import read_parquet

GridCell = tuple[str, str, float]  # allocator, eviction, ratio

_COLUMNS = pa.schema([COLUMNS.field(name) for name in ("allocator", "eviction", "ratio", "group", "score", "failed")])
_GROUP = re.compile(r"length (\d+), depth ([\d.e-]+)")  # the format that `baklava.tasks.ruler.needle_grid` writes


@dataclass(frozen=True, eq=False)
class DepthByLength:
    """Mean scores per cell (allocator, eviction, ratio), each `[depths, lengths]`; NaN where no sample was answered.

    `lengths` are in tokens, `depths` are the fraction of the text that comes before the needle.
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
        """Group cells by method (allocator, eviction): the full cache first, then the ratios in order.

        Where nothing is compressed, the full cache is a method of its own.
        """
        full = [cell for cell in self.scores if cell[0] == FULL]
        methods = sorted({cell[:2] for cell in self.scores} - {cell[:2] for cell in full})
        compressed = {method: sorted(cell for cell in self.scores if cell[:2] == method) for method in methods}
        return {method: [*full, *cells] for method, cells in compressed.items()} or {cell[:2]: [cell] for cell in full}


def read_depth_by_length(path: Path) -> DepthByLength:
    """Read the grid. Raises `UserError` for a missing or broken file, and for records of another kind of task."""
    records = read_parquet(path, _COLUMNS, schema=SCHEMA, what="records", hint="`baklava evaluate`").to_pandas()
    answered = records[records["failed"] == ""]
    positions = {group: _parse_group(group, path) for group in answered["group"].unique()}
    depths = sorted({depth for _, depth in positions.values()})
    lengths = sorted({length for length, _ in positions.values()})
    answered = answered.assign(
        length=[positions[group][0] for group in answered["group"]],
        depth=[positions[group][1] for group in answered["group"]],
    )
    scores = {}
    for (allocator, eviction, ratio), rows in answered.groupby(["allocator", "eviction", "ratio"]):
        scores[str(allocator), str(eviction), float(ratio)] = _average(rows, depths, lengths)
    return DepthByLength(tuple(depths), tuple(lengths), scores)


def _average(rows: pd.DataFrame, depths: list[float], lengths: list[int]) -> NDArray[np.float64]:
    """Mean scores `[depths, lengths]` of one cell."""
    means = rows.pivot_table(index="depth", columns="length", values="score", aggfunc="mean")
    return means.reindex(index=depths, columns=lengths).to_numpy(np.float64)


def _parse_group(group: str, path: Path) -> tuple[int, float]:
    """The length and depth in a group's name."""
    match = _GROUP.fullmatch(group)
    if match is None:
        raise UserError(f"{path}: group {group!r} names no length and depth; only needle grids have a heat map")
    return int(match[1]), float(match[2])
