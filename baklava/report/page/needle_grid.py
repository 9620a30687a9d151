"""Scores of needle grids over depth and length, by model, task and method, with a slider over the ratios."""

from __future__ import annotations

from collections.abc import Iterator

import plotly.graph_objects as go

from baklava.analysis.depth_by_length import DepthByLength, GridCell
from baklava.report.data.looks import uniform_last
from baklava.report.page.heat_map import draw_heat_map
from baklava.report.page.view import Frame, PageView


def show_needle_grids(grids: dict[str, dict[str, DepthByLength]]) -> PageView:
    """Show the grids of every model and task."""
    return PageView(
        id="needle-grid",
        title="Needle by depth and length",
        text="Mean score for one needle at each depth (share of the text before it) of each length.",
        controls=("model", "task", "method", "ratio"),
        frames=tuple(
            Frame((model, task, *at), _draw(grid, cell))
            for model, by_task in grids.items()
            for task, grid in by_task.items()
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


def _draw(grid: DepthByLength, cell: GridCell) -> go.Figure:
    values = grid.scores[cell]
    return draw_heat_map(
        values,
        low=0,
        high=1,
        text=".2f",
        hover=lambda i, j: f"depth {grid.depth_labels[i]}, length {grid.lengths[j]}<br>score {values[i, j]:.3f}",
        x=("length in tokens", grid.length_labels),
        y=("depth", grid.depth_labels),
    )
