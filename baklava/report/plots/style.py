"""How the figures look: colours that the colour-blind tell apart, readable type, files that repeat byte for byte."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from baklava.evaluation.records import UNIFORM
from baklava.system.files import atomic

INK = "#22262b"
MUTED = "#6b7280"
GRID = "#e6e8eb"
CROWD = 3  # with more methods than this, a panel has no room for words
HONEY = "YlOrBr"  # sequential, safe for the colour-blind

FULL_CACHE: dict[str, Any] = {"color": INK, "linestyle": (0, (4, 3)), "linewidth": 1.2}

# Okabe and Ito's palette; the two that are always there come first, the others in order of appearance.
_COLOURS = {UNIFORM: "#0072b2", "baklava": "#d55e00"}
_FURTHER = ("#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c5b2f")
Dashes = Literal["-", "--", ":", "-."]
_DASHES: tuple[Dashes, ...] = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")

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


@dataclass(frozen=True)
class Look:
    """How one method is drawn in every panel: the colour is its allocator's, the dashes its eviction policy's."""

    label: str
    colour: str
    dashes: Dashes
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """For `Axes.plot`: a curve through marked points."""
        marks = {"marker": self.marker, "markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.6}
        return {"color": self.colour, "linestyle": self.dashes, **marks}


@contextmanager
def styled() -> Iterator[None]:
    """The settings of all figures, for the drawing inside the block only."""
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_SETTINGS}  # whatever a matplotlibrc says
    del settings["backend"]
    with matplotlib.rc_context(settings):
        yield


def looks(methods: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Look]:
    """A look per method (allocator, eviction); the eviction policy is named only where there are several."""
    allocators = _in_order(allocator for allocator, _ in methods)
    evictions = _in_order(eviction for _, eviction in methods)
    further = [allocator for allocator in allocators if allocator not in _COLOURS]
    colours = _COLOURS | {allocator: _FURTHER[i % len(_FURTHER)] for i, allocator in enumerate(further)}
    return {
        (allocator, eviction): Look(
            label=allocator if len(evictions) == 1 else f"{allocator} / {eviction}",
            colour=colours[allocator],
            dashes=_DASHES[evictions.index(eviction) % len(_DASHES)],
            marker=_MARKERS[allocators.index(allocator) % len(_MARKERS)],
        )
        for allocator, eviction in methods
    }


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def headings(figure: Figure, title: str, subtitle: str) -> None:
    """Title and subtitle at the top left; the layout leaves room for both."""
    figure.suptitle(f"{title}\n", x=0.012, ha="left", fontsize=14, fontweight="bold", linespacing=1.45)
    below = 1 - 0.42 / figure.get_figheight()
    figure.text(0.012, below, subtitle, ha="left", va="center", color=MUTED, fontsize=9.5)


def nothing_to_draw(title: str, why: str) -> Figure:
    """A figure that says why there is none, so that every file of a report is there."""
    figure = Figure(figsize=(8.0, 1.6), layout="constrained")
    headings(figure, title, why)
    return figure


def method_legend(figure: Figure, styles: Iterable[Look]) -> None:
    """One entry per method, then the full cache: at the top right, or below where they are many."""
    methods = [
        Line2D([], [], color=look.colour, linestyle=look.dashes, marker=look.marker, markersize=5.5, label=look.label)
        for look in styles
    ]
    full = Line2D([], [], **FULL_CACHE, label="full cache")
    handles = [*methods, full]
    crowded = len(methods) > CROWD
    figure.legend(
        handles=handles,
        loc="outside lower center" if crowded else "outside upper right",
        ncols=4 if crowded else len(handles),
        handlelength=2.6,
    )


def score_axis(axes: Axes, largest: float) -> None:
    """Scores from 0, to 1 or the largest one."""
    axes.set_ylim(-0.03, 1.05 * max(1.0, largest))


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `<name>.svg` and `<name>.png`, without dates or versions inside."""
    empty = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    for kind, metadata in empty.items():
        with atomic(folder / f"{name}.{kind}") as unfinished:
            figure.savefig(unfinished, format=kind, metadata=metadata)
            if kind == "svg":
                unfinished.write_text(_numbered(unfinished.read_text(encoding="utf-8")), encoding="utf-8")


def _numbered(svg: str) -> str:
    """Clip paths and markers numbered in order: matplotlib's names for them come from memory addresses."""
    names = dict.fromkeys(re.findall(r'id="([a-z][0-9a-f]{10})"', svg))
    numbers = {name: f"{name[0]}{number}" for number, name in enumerate(names)}
    return re.sub(r"(?<=[\"#])[a-z][0-9a-f]{10}(?=[\")])", lambda found: numbers.get(found[0], found[0]), svg)
