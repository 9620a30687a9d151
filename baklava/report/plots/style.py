"""Matplotlib's settings for all figures: readable type, legends, and files that repeat byte for byte."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from baklava.report.data.curves import score_range
from baklava.report.data.looks import GRID, INK, MAX_UNCROWDED, MUTED, Look
from baklava.system.files import atomic

FULL_CACHE: dict[str, Any] = {"color": INK, "linestyle": (0, (4, 3)), "linewidth": 1.2}

_SETTINGS = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.titlesize": 10.5,
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the same everywhere
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "savefig.dpi": 160,
    "svg.fonttype": "path",
    "svg.hashsalt": "baklava",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 9,
}


@contextmanager
def styled() -> Iterator[None]:
    """Apply the settings of all figures inside the block only."""
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_SETTINGS}  # whatever a matplotlibrc says
    del settings["backend"]
    with matplotlib.rc_context(settings):
        yield


def line_style(look: Look) -> dict[str, Any]:
    """Arguments of `Axes.plot` for a curve through marked points."""
    marks = {"marker": look.marker, "markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.6}
    return {"color": look.colour, "linestyle": look.dashes, **marks}


def add_headings(figure: Figure, title: str, subtitle: str) -> None:
    """Write title and subtitle at the top left; the layout leaves room for both."""
    figure.suptitle(f"{title}\n", x=0.012, ha="left", fontsize=14, fontweight="bold", linespacing=1.45)
    below = 1 - 0.42 / figure.get_figheight()
    figure.text(0.012, below, subtitle, ha="left", va="center", color=MUTED, fontsize=9.5)


def draw_nothing(title: str, reason: str) -> Figure:
    """Draw a figure that says why there is nothing to show: every file of a report exists."""
    figure = Figure(figsize=(8.0, 1.6), layout="constrained")
    add_headings(figure, title, reason)
    return figure


def add_method_legend(figure: Figure, looks: Iterable[Look]) -> None:
    """Add one entry per method, then the full cache: at the top right, or below where they are many."""
    methods = [
        Line2D([], [], color=look.colour, linestyle=look.dashes, marker=look.marker, markersize=5.5, label=look.label)
        for look in looks
    ]
    full = Line2D([], [], **FULL_CACHE, label="full cache")
    handles = [*methods, full]
    crowded = len(methods) > MAX_UNCROWDED
    figure.legend(
        handles=handles,
        loc="outside lower center" if crowded else "outside upper right",
        ncols=4 if crowded else len(handles),
        handlelength=2.6,
    )


def set_score_axis(axes: Axes, largest: float) -> None:
    """Let the y axis show scores up to `largest`."""
    axes.set_ylim(*score_range(largest))


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `<name>.svg` and `<name>.png`, without dates or versions inside."""
    empty = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    for kind, metadata in empty.items():
        with atomic(folder / f"{name}.{kind}") as unfinished:
            figure.savefig(unfinished, format=kind, metadata=metadata)
            if kind == "svg":
                unfinished.write_text(_number_names(unfinished.read_text(encoding="utf-8")), encoding="utf-8")


def _number_names(svg: str) -> str:
    """Number clip paths and markers in order: matplotlib names them by memory addresses."""
    names = dict.fromkeys(re.findall(r'id="([a-z][0-9a-f]{10})"', svg))
    numbers = {name: f"{name[0]}{number}" for number, name in enumerate(names)}
    return re.sub(r"(?<=[\"#])[a-z][0-9a-f]{10}(?=[\")])", lambda match: numbers.get(match[0], match[0]), svg)
