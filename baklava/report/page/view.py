"""A figure of the page: frames, one of which shows at a time, picked by menus and sliders."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from baklava.report.data.looks import GRID, INK, MUTED

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True, eq=False)
class Frame:
    """One state of a figure. `at` has a value per control of its view; `note` is a line of plain text."""

    at: tuple[str, ...]
    figure: go.Figure
    note: str = ""


@dataclass(frozen=True, eq=False)
class PageView:
    """A figure with its controls, each of which offers the values that the frames have; `slider` names one control."""

    id: str
    title: str
    text: str
    controls: tuple[str, ...]
    frames: tuple[Frame, ...]
    slider: str = ""
    narrow: bool = False  # half of the page's width is enough


def escape(value: object) -> str:
    """Escape a name for Plotly, which reads tags in its texts."""
    return html.escape(str(value), quote=False)


def make_figure(traces: list[Any], *, height: int, x: dict[str, Any], y: dict[str, Any]) -> go.Figure:
    """Make a figure in the colours of all figures, without Plotly's own template."""
    axis = {
        "gridcolor": GRID,
        "linecolor": MUTED,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": GRID,
        "title": {"standoff": 10},
        "automargin": True,
    }
    return go.Figure(
        data=traces,
        layout=go.Layout(
            template=go.layout.Template(),
            height=height,
            font={"family": FONT, "size": 13, "color": INK},
            paper_bgcolor="white",
            plot_bgcolor="white",
            margin={"l": 60, "r": 20, "t": 36, "b": 55},
            hoverlabel={"bgcolor": "white", "bordercolor": MUTED, "font": {"color": INK}, "align": "left"},
            legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            xaxis={**axis, **x},
            yaxis={**axis, **y},
        ),
    )


def view_to_json(view: PageView) -> dict[str, Any]:
    """What the page's script needs to draw a view."""
    return {
        "id": view.id,
        "controls": [{"name": name, "slider": name == view.slider} for name in view.controls],
        "frames": [{"at": frame.at, "note": frame.note, **frame.figure.to_plotly_json()} for frame in view.frames],
    }
