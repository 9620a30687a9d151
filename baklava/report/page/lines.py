"""Lines in the colours, dashes and markers that a method has in every figure."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from baklava.report.data.looks import INK, Look
from baklava.report.page.view import escape

_DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
_MARKERS = {
    **{"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up"},
    **{"v": "triangle-down", "P": "cross", "X": "x"},
}


def draw_method_line(look: Look, x: Sequence[float], y: Sequence[float], hover: Sequence[str]) -> go.Scatter:
    """One method through marked points; `hover` has HTML per point."""
    return go.Scatter(
        x=list(x),
        y=list(y),
        mode="lines+markers",
        name=escape(look.label),
        line={"color": look.colour, "dash": _DASHES[look.dashes], "width": 2.5},
        marker={"symbol": _MARKERS[look.marker], "size": 8, "line": {"color": "white", "width": 1}},
        text=list(hover),
        hoverinfo="text",
        legendgroup=look.label,
    )


def draw_full_cache_line(across: Sequence[float], value: float, hover: str) -> go.Scatter:
    """The full cache, dashed, over the two ends of `across`."""
    return go.Scatter(
        x=list(across),
        y=[value, value],
        mode="lines",
        name="full cache",
        line={"color": INK, "dash": "dash", "width": 1.2},
        text=[hover, hover],
        hoverinfo="text",
    )


def draw_band(
    look: Look, x: Sequence[float], low: Sequence[float], high: Sequence[float], *, opacity: float
) -> go.Scatter:
    """The area from `low` to `high`, shown and hidden together with the method's line."""
    red, green, blue = (int(look.colour[i : i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(
        x=[*x, *reversed(x)],
        y=[*low, *reversed(high)],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},{opacity})",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=look.label,
    )
