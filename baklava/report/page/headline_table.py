"""The table of headline figures: each method's largest lossless ratio, and its gain over uniform at every ratio."""

from __future__ import annotations

from dataclasses import dataclass

from baklava.analysis.headline import Headline, MethodFigures, ModelFigures, RatioFigures
from baklava.analysis.verdict import describe_rule
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
    why: str
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
    rule: str
    confidence: str


def tabulate_headline(headline: Headline) -> HeadlineTable:
    ratios = sorted({r.ratio for model in headline.models.values() for method in model.methods for r in method.ratios})
    return HeadlineTable(
        ratios=tuple(f"{ratio:g}" for ratio in ratios),
        blocks=tuple(
            TableBlock(
                model,
                tuple(_facts(headline, model)),
                tuple(_row(headline, model, method, ratios) for method in _in_order(headline, figures)),
            )
            for model, figures in headline.models.items()
        ),
        rule=describe_rule(headline.margin, headline.confidence),
        confidence=f"{100 * headline.confidence:g}%",
    )


def _in_order(headline: Headline, figures: ModelFigures) -> list[MethodFigures]:
    order = list_methods(headline)
    return sorted(figures.methods, key=lambda method: order.index((method.allocator, method.eviction)))


def _row(headline: Headline, model: str, method: MethodFigures, ratios: list[float]) -> TableRow:
    look = assign_looks(list_methods(headline))[method.allocator, method.eviction]
    reason = headline.explain_no_verdict(model)
    by_ratio = {at_ratio.ratio: at_ratio for at_ratio in method.ratios}
    return TableRow(
        label=look.label,
        colour=look.colour,
        full=f"{headline.models[model].full:.3f}",
        lossless=reason or method.describe_lossless(),
        why="" if reason else method.explain_none(),
        entries=tuple(_entry(method, by_ratio[ratio], reason) if ratio in by_ratio else None for ratio in ratios),
    )


def _entry(method: MethodFigures, figures: RatioFigures, no_verdict: str | None) -> TableEntry:
    lossless = not no_verdict and bool(figures.lossless)
    score = f"{figures.score:.3f}"
    if method.allocator == UNIFORM or figures.delta_uniform is None:
        return TableEntry(score, lossless=lossless)
    low, high = figures.delta_uniform_low or 0.0, figures.delta_uniform_high or 0.0
    return TableEntry(
        score=score,
        gain=_gain(figures),
        delta=f"{figures.delta_uniform:+.3f} [{low:+.3f}, {high:+.3f}]",
        lossless=lossless,
        better=low > 0,
    )


def _gain(figures: RatioFigures) -> str:
    if figures.gain_over_uniform is None:
        return "uniform: 0"
    return f"\N{MULTIPLICATION SIGN}{figures.gain_over_uniform:.2f}"


def _facts(headline: Headline, model: str) -> list[tuple[str, str]]:
    """How far the best method goes, and what it has left of the score at the highest ratio."""
    figures = headline.models[model]
    compared = {m.eviction for m in figures.methods if m.allocator != UNIFORM}  # of which uniform is the baseline
    others = [m for m in figures.methods if m.ratios and (m.allocator != UNIFORM or m.eviction not in compared)]
    if not others:
        return [(f"{figures.full:.3f}", "score of the full cache; nothing was compressed")]
    best = max(others, key=lambda method: (method.largest_lossless_ratio or 0.0, method.ratios[-1].score))
    last = best.ratios[-1]
    uniform = last.uniform if best.allocator != UNIFORM else None
    against = f"full cache {figures.full:.3f}" + ("" if uniform is None else f"; uniform {uniform:.3f}")
    reason = headline.explain_no_verdict(model)
    return [
        (reason, "on lossless ratios") if reason else (best.describe_lossless(), _explain(figures, best)),
        (f"{last.score:.3f}", f"score of {best.allocator} / {best.eviction} at r = {last.ratio:g} ({against})"),
    ]


def _explain(figures: ModelFigures, best: MethodFigures) -> str:
    """What the first fact says, beside the largest lossless ratio of the best method."""
    name = f"{best.allocator} / {best.eviction}"
    if best.largest_lossless_ratio == 0:
        return f"is lossless; difference of {name} to the full cache at {best.explain_none()} points"
    uniform = [m for m in figures.methods if m.allocator == UNIFORM and m.eviction == best.eviction]
    beside = f" (uniform: {uniform[0].describe_lossless()})" if uniform and best not in uniform else ""
    return f"largest lossless ratio of any method, by {name}{beside}"
