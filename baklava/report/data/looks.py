"""How each method looks in every figure, and in which order methods are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from baklava.analysis.headline import Headline
from baklava.evaluation.record_schema import UNIFORM

Method = tuple[str, str]  # allocator, eviction policy

INK = "#22262b"
MUTED = "#6b7280"
GRID = "#e6e8eb"
HONEY = "YlOrBr"  # sequential, safe for the colour-blind; matplotlib and Plotly both know it
MAX_UNCROWDED = 3  # with more methods than this, a panel has no room for words

# Okabe and Ito's palette; the two that are always there come first, the others in order of appearance.
_COLOURS = {UNIFORM: "#0072b2", "baklava": "#d55e00"}
_FURTHER = ("#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c5b2f")
Dashes = Literal["-", "--", ":", "-."]
_DASHES: tuple[Dashes, ...] = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")


@dataclass(frozen=True)
class Look:
    """How one method is drawn: the colour is its allocator's, the dashes its eviction policy's.

    Dashes and markers have matplotlib's names.
    """

    label: str
    colour: str
    dashes: Dashes
    marker: str


def assign_looks(methods: Sequence[Method]) -> dict[Method, Look]:
    """Give each method a look; labels name the eviction policy only where there are several."""
    allocators = list(dict.fromkeys(allocator for allocator, _ in methods))
    evictions = list(dict.fromkeys(eviction for _, eviction in methods))
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


def list_methods(headline: Headline) -> list[Method]:
    """Every method of any model, uniform first."""
    return uniform_first(
        {(method.allocator, method.eviction) for model in headline.models.values() for method in model.methods}
    )


def uniform_first(methods: Iterable[Method]) -> list[Method]:
    """Sort methods for drawing: uniform lies below what is compared with it."""
    return sorted(methods, key=lambda method: (method[0] != UNIFORM, method))


def uniform_last(methods: Iterable[Method]) -> list[Method]:
    """Sort methods for a menu, which opens with the first one."""
    return sorted(methods, key=lambda method: (method[0] == UNIFORM, method))
