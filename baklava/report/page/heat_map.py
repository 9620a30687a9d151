"""Heat maps in the colours of the other figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import plotly.graph_objects as go
from numpy.typing import NDArray

from baklava.report.data.looks import HONEY
from baklava.report.page.view import make_figure

MAX_ROWS, MAX_COLUMNS = 24, 16  # with more, cells have no room for numbers


def draw_heat_map(
    values: NDArray,
    *,
    low: float,
    high: float,
    text: str,
    hover: Callable[[int, int], str],
    x: tuple[str, Sequence[str]],
    y: tuple[str, Sequence[str]],
) -> go.Figure:
    """Draw `values` `[rows, columns]`, row 0 at the top; `x` and `y` are an axis' title and the labels of its cells."""
    n_rows, n_columns = values.shape
    shown = [[None if math.isnan(value) else float(value) for value in row] for row in values]
    roomy = n_rows <= MAX_ROWS and n_columns <= MAX_COLUMNS
    trace = go.Heatmap(
        z=shown,
        zmin=low,
        zmax=high,
        colorscale=HONEY,
        xgap=2 if roomy else 1,
        ygap=2 if roomy else 1,
        text=[["" if value is None else format(value, text) for value in row] for row in shown],
        texttemplate="%{text}" if roomy else None,
        hovertext=[[hover(i, j) for j in range(n_columns)] for i in range(n_rows)],
        hoverinfo="text",
        colorbar={"thickness": 12, "outlinewidth": 0, "tickfont": {"size": 11}},
    )
    return make_figure(
        [trace],
        height=min(820, max(280, 26 * n_rows + 110)),
        x={**_ticks(*x), "showgrid": False},
        y={**_ticks(*y), "showgrid": False, "autorange": "reversed"},
    )


def _ticks(title: str, labels: Sequence[str]) -> dict[str, object]:
    step = 1 if len(labels) <= 16 else 4
    labelled = list(range(0, len(labels), step))
    return {"title": {"text": title}, "tickvals": labelled, "ticktext": [labels[i] for i in labelled], "ticks": ""}
