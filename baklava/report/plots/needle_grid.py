"""Scores of a needle grid: what is found at which depth of which length, by each method at each ratio."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from baklava.analysis.depth_by_length import DepthByLength, GridCell
from baklava.evaluation.records import FULL
from baklava.report.plots.curves import uniform_first
from baklava.report.plots.heat_map import colour_bar, heat_map, panel_size, panel_title
from baklava.report.plots.style import headings


def needle_grid(model: str, task: str, grid: DepthByLength) -> Figure:
    """A line of panels per method, the full cache first, then a panel per ratio; one scale from 0 to 1."""
    by_method = grid.by_method()
    lines = [by_method[method] for method in sorted(by_method, key=uniform_first)]
    columns = max(map(len, lines))
    width, height = panel_size(len(grid.depths), len(grid.lengths))
    size = (max(8.0, (max(width, 1.45) + 0.35) * columns + 1.3), (height + 1.2) * len(lines) + 0.75)
    figure = Figure(figsize=size, layout="constrained")
    headings(figure, f"{model}: {task} by depth and length", "mean score; depth: share of the text before the needle")
    for axes, cells in zip(figure.subplots(len(lines), columns, squeeze=False, sharey=True), lines, strict=True):
        for panel, cell in zip(axes, cells, strict=False):
            mesh = _panel(panel, grid, cell)
        for unused in axes[len(cells) :]:
            unused.set_axis_off()
        axes[0].set_ylabel("depth")
        colour_bar(axes, mesh)
    return figure


def _panel(axes: Axes, grid: DepthByLength, cell: GridCell) -> QuadMesh:
    allocator, eviction, ratio = cell
    mesh = heat_map(axes, grid.scores[cell], low=0, high=1, text=".2f")
    axes.set_xticks([i + 0.5 for i in range(len(grid.lengths))], list(map(str, grid.lengths)))
    axes.set_yticks([i + 0.5 for i in range(len(grid.depths))], [f"{depth:g}" for depth in grid.depths])
    axes.set_xlabel("length in tokens")
    if allocator == FULL:
        panel_title(axes, "full cache", "")
    else:
        panel_title(axes, f"r = {ratio:g}", f"{allocator} / {eviction}")
    return mesh
