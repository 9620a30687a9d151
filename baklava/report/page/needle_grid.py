"""Scores of needle grids over depth and length, by model, task and method, with a slider over the ratios."""

from __future__ import annotations

from collections.abc import Iterator

import plotly.graph_objects as go

from baklava.analysis.depth_by_length import DepthByLength, GridCell
from baklava.report.page.heat_map import heat_map
from baklava.report.page.view import Frame, PageView, uniform_last


def needle_grid(grids: dict[tuple[str, str], DepthByLength]) -> PageView:
    return PageView(
        id="needle-grid",
        title="Needle by depth and length",
        text="Mean score for one needle at each depth (share of the text before it) of each length.",
        controls=("model", "task", "method", "ratio"),
        frames=tuple(
            Frame((model, task, *at), _heat_map(grid, cell))
            for (model, task), grid in grids.items()
            for at, cell in _cells(grid)
        ),
        slider="ratio",
    )


def _cells(grid: DepthByLength) -> Iterator[tuple[tuple[str, str], GridCell]]:
    """(method, ratio) as shown, and the cell; every method begins with the full cache, r = 0."""
    by_method = grid.by_method()
    for method in uniform_last(by_method):
        for cell in by_method[method]:
            yield (" / ".join(method), f"{cell[2]:g}"), cell


def _heat_map(grid: DepthByLength, cell: GridCell) -> go.Figure:
    values = grid.scores[cell]
    return heat_map(
        values,
        low=0,
        high=1,
        text=".2f",
        hover=lambda i, j: f"depth {grid.depths[i]:g}, length {grid.lengths[j]}<br>score {values[i, j]:.3f}",
        x=("length in tokens", [str(length) for length in grid.lengths]),
        y=("depth", [f"{depth:g}" for depth in grid.depths]),
    )
