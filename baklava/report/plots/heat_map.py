"""Heat maps over all KV caches of a model: a row per layer, a column per KV head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from baklava.report.data.looks import HONEY, INK, MUTED

CELL_WIDTH, CELL_HEIGHT = 0.42, 0.32  # inches, of a small model
MAX_WIDTH, MAX_HEIGHT = 3.0, 7.0  # inches of a panel; a large model's cells are squeezed into it


def panel_size(n_layers: int, n_columns: int) -> tuple[float, float]:
    """Inches of a panel: full cells for a small model, squeezed ones for a large model."""
    width = min(MAX_WIDTH, max(1.1, CELL_WIDTH * n_columns))
    return width, min(MAX_HEIGHT, max(1.6, CELL_HEIGHT * n_layers))


def draw_heat_map(axes: Axes, values: NDArray, *, low: float, high: float, text: str | None = None) -> QuadMesh:
    """Draw `values` `[n_layers, n_columns]`, layer 0 at the top; `text` formats the numbers where they fit."""
    n_layers, n_columns = values.shape
    width, height = panel_size(n_layers, n_columns)
    roomy = width / n_columns >= 0.34 and height / n_layers >= 0.2
    mesh = axes.pcolormesh(values, cmap=HONEY, vmin=low, vmax=high, edgecolors="white", linewidth=1.2 if roomy else 0.3)
    axes.set_ylim(n_layers, 0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _set_ticks(axes, n_layers, n_columns)
    if text and roomy:
        _write_numbers(axes, values, (low + 0.62 * (high - low)), text)
    return mesh


def set_panel_title(axes: Axes, title: str, note: str) -> None:
    """Give a panel a title with a muted line under it."""
    axes.set_title(f"{title}\n", fontweight="bold")
    axes.annotate(note, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", color=MUTED, fontsize=8.5)


def add_colour_bar(axes: Axes | Sequence[Axes], mesh: QuadMesh) -> None:
    """Add a slim scale on the right of one panel or of several."""
    panels = [axes] if isinstance(axes, Axes) else list(axes)
    bar = panels[0].figure.colorbar(mesh, ax=panels, aspect=30, pad=0.03 / len(panels), shrink=0.9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.ax.grid(False)


def _set_ticks(axes: Axes, n_layers: int, n_columns: int) -> None:
    for axis, n in ((axes.xaxis, n_columns), (axes.yaxis, n_layers)):
        step = 1 if n <= 10 else 4
        axis.set_major_locator(FixedLocator([i + 0.5 for i in range(0, n, step)]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda index, _: f"{int(index)}"))
    axes.tick_params(length=0, labelsize=8.5)


def _write_numbers(axes: Axes, values: NDArray, dark_above: float, text: str) -> None:
    for (layer, column), value in np.ndenumerate(values):
        if math.isnan(value):
            continue
        colour = "white" if value > dark_above else INK
        axes.text(column + 0.5, layer + 0.5, format(value, text), ha="center", va="center", fontsize=7.5, color=colour)
