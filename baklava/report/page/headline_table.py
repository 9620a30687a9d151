"""The table of headline figures: each method's largest lossless ratio, and its gain over uniform at every ratio."""

from __future__ import annotations

from dataclasses import dataclass

from baklava.analysis.headline import Headline, MethodFigures, ModelFigures, RatioFigures
from baklava.evaluation.record_schema import UNIFORM
from baklava.report.data.looks import assign_looks, list_methods


@dataclass(frozen=True)
class TableEntry:
    """A method at a ratio, in words: `gain` is uniform's factor, `delta` the paired difference with its interval."""

    score: str
    gain: str = ""
    delta: str = ""
    lossless: bool = False
    better: bool = False  # than uniform, by the whole interval


@dataclass(frozen=True)
class TableRow:
    """One method of a model."""

    label: str
    colour: str
    full: str
    lossless: str
    entries: tuple[TableEntry | None, ...]


@dataclass(frozen=True)
class TableBlock:
    """One model; `facts` are its headline in a few words, each a number and what it says."""

    model: str
    facts: tuple[tuple[str, str], ...]
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class HeadlineTable:
    """Blocks of rows under ratios, and what the words mean."""

    ratios: tuple[str, ...]
    blocks: tuple[TableBlock, ...]
    confidence: str
    margin: str


def tabulate_headline(headline: Headline) -> HeadlineTable:
    ratios = sorted({r.ratio for model in headline.models.values() for method in model.methods for r in method.ratios})
    return HeadlineTable(
        ratios=tuple(f"{ratio:g}" for ratio in ratios),
        blocks=tuple(
            TableBlock(
                model,
                tuple(_facts(figures)),
                tuple(_row(headline, figures, method, ratios) for method in _in_order(headline, figures)),
            )
            for model, figures in headline.models.items()
        ),
        confidence=f"{100 * headline.confidence:g}%",
        margin=f"{headline.margin:g}",
    )


def _in_order(headline: Headline, figures: ModelFigures) -> list[MethodFigures]:
    order = list_methods(headline)
    return sorted(figures.methods, key=lambda method: order.index((method.allocator, method.eviction)))


def _row(headline: Headline, figures: ModelFigures, method: MethodFigures, ratios: list[float]) -> TableRow:
    look = assign_looks(list_methods(headline))[method.allocator, method.eviction]
    by_ratio = {at_ratio.ratio: at_ratio for at_ratio in method.ratios}
    return TableRow(
        label=look.label,
        colour=look.colour,
        full=f"{figures.full:.3f}",
        lossless=_largest(method),
        entries=tuple(_entry(method, by_ratio[ratio]) if ratio in by_ratio else None for ratio in ratios),
    )


def _entry(method: MethodFigures, figures: RatioFigures) -> TableEntry:
    score = f"{figures.score:.3f}"
    if method.allocator == UNIFORM or figures.delta_uniform is None:
        return TableEntry(score, lossless=figures.lossless)
    low, high = figures.delta_uniform_low or 0.0, figures.delta_uniform_high or 0.0
    return TableEntry(
        score=score,
        gain=_gain(figures),
        delta=f"{figures.delta_uniform:+.3f} [{low:+.3f}, {high:+.3f}]",
        lossless=figures.lossless,
        better=low > 0,
    )


def _gain(figures: RatioFigures) -> str:
    if figures.gain_over_uniform is None:
        return "uniform: 0"
    return f"\N{MULTIPLICATION SIGN}{figures.gain_over_uniform:.2f}"


def _largest(method: MethodFigures) -> str:
    return f"r = {method.largest_lossless_ratio:g}" if method.largest_lossless_ratio else "none"


def _facts(figures: ModelFigures) -> list[tuple[str, str]]:
    """How far the best method goes, and what it has left of the score at the highest ratio."""
    others = [m for m in figures.methods if m.allocator != UNIFORM and m.ratios] or list(figures.methods)
    if not others or not others[0].ratios:
        return [(f"{figures.full:.3f}", "score of the full cache; nothing was compressed")]
    best = max(others, key=lambda method: (method.largest_lossless_ratio, method.ratios[-1].score))
    name = f"{best.allocator} / {best.eviction}"
    uniform = [m for m in figures.methods if m.allocator == UNIFORM and m.eviction == best.eviction]
    beside = f" (uniform: {_largest(uniform[0])})" if uniform and best not in uniform else ""
    last = best.ratios[-1]
    against = f"; uniform {last.uniform:.3f}" if last.uniform is not None and best not in uniform else ""
    return [
        (_largest(best), f"largest lossless ratio of any method, by {name}{beside}"),
        (f"{last.score:.3f}", f"score of that method at r = {last.ratio:g} (full cache {figures.full:.3f}{against})"),
    ]
