"""Scores of a needle grid: which depths of which lengths each method answers, at each ratio."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from baklava.analysis.depth_by_length import DepthByLength, GridCell
from baklava.evaluation.record_schema import FULL
from baklava.report.data.looks import uniform_first
from baklava.report.plots.heat_map import add_colour_bar, draw_heat_map, panel_size, set_panel_title
from baklava.report.plots.style import add_headings


def draw_needle_grid(model: str, task: str, grid: DepthByLength) -> Figure:
    """Draw a line of panels per method, the full cache first, then a panel per ratio; one scale from 0 to 1."""
    by_method = grid.by_method()
    lines = [by_method[method] for method in uniform_first(by_method)]
    columns = max(map(len, lines))
    width, height = panel_size(len(grid.depths), len(grid.lengths))
    size = (max(8.0, (max(width, 1.45) + 0.35) * columns + 1.3), (height + 1.2) * len(lines) + 0.75)
    figure = Figure(figsize=size, layout="constrained")
    subtitle = "mean score; depth: share of the text before the needle"
    add_headings(figure, f"{model}: {task} by depth and length", subtitle)
    for axes, cells in zip(figure.subplots(len(lines), columns, squeeze=False, sharey=True), lines, strict=True):
        for panel, cell in zip(axes, cells, strict=False):
            mesh = _draw_panel(panel, grid, cell)
        for unused in axes[len(cells) :]:
            unused.set_axis_off()
        axes[0].set_ylabel("depth")
        add_colour_bar(axes, mesh)
    return figure


def _draw_panel(axes: Axes, grid: DepthByLength, cell: GridCell) -> QuadMesh:
    allocator, eviction, ratio = cell
    mesh = draw_heat_map(axes, grid.scores[cell], low=0, high=1, text=".2f")
    axes.set_xticks([i + 0.5 for i in range(len(grid.lengths))], grid.length_labels)
    axes.set_yticks([i + 0.5 for i in range(len(grid.depths))], grid.depth_labels)
    axes.set_xlabel("length in tokens")
    if allocator == FULL:
        set_panel_title(axes, "full cache", "")
    else:
        set_panel_title(axes, f"r = {ratio:g}", f"{allocator} / {eviction}")
    return mesh
