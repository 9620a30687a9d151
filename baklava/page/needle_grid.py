"""Scores of needle grids over depth and length, by model, task and method, with a slider over the ratios."""

from __future__ import annotations

import plotly.graph_objects as go

from baklava.cells import FULL
from baklava.depth_by_length import DepthByLength
from baklava.page.heat_map import heat_map
from baklava.page.view import Frame, View
from baklava.plots.curves import uniform_first


def needle_grid(grids: dict[tuple[str, str], DepthByLength]) -> View:
    return View(
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


def _cells(grid: DepthByLength) -> list[tuple[tuple[str, str], tuple[str, str, float]]]:
    """Each method from the full cache (r = 0) on, as (method, ratio) and the cell."""
    full = [cell for cell in grid.scores if cell[0] == FULL]
    methods = sorted({cell[:2] for cell in grid.scores if cell[0] != FULL}, key=uniform_first)
    if not methods:
        return [(("full cache", "0"), cell) for cell in full]
    return [
        ((f"{method[0]} / {method[1]}", f"{cell[2]:g}"), cell)
        for method in methods
        for cell in [*full, *sorted(cell for cell in grid.scores if cell[:2] == method)]
    ]


def _heat_map(grid: DepthByLength, cell: tuple[str, str, float]) -> go.Figure:
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
