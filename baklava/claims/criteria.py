"""Bars: what was asked of an allocator, and whether the figures meet it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from baklava.analysis.comparison import MEAN, Comparison, PairedDifference
from baklava.analysis.headline import TIE
from baklava.experiment.schema import ClaimsConfig, FrozenModel, SummaryConfig

Verdict = Literal["met", "missed", "not measured"]


class Criterion(FrozenModel):
    """One bar for one model and eviction policy; `figures` says in words what the verdict rests on."""

    model: str
    eviction: str
    asked: str
    verdict: Verdict
    figures: str


def in_points(difference: float, low: float, high: float) -> str:
    """A difference of scores and its interval, in points (hundredths)."""
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def evaluate_criteria(
    comparisons: Sequence[Comparison], settings: ClaimsConfig, summary: SummaryConfig
) -> Iterator[Criterion]:
    """Every bar for every model, on the mean of the tasks.

    What no records say anything about is "not measured".
    """
    means = [one for one in comparisons if one.task == MEAN]
    for model in dict.fromkeys(one.model for one in means):
        for eviction in settings.evictions:
            own = _Judge(model, eviction, means, settings)
            yield from (own.lossless(ratio, summary.margin) for ratio in settings.lossless_at)
            yield from (own.gain(ratio, least) for ratio, least in settings.gain_at.items())
            yield from (own.gain_up_to(ratio, least) for ratio, least in settings.gain_up_to.items())
        for eviction in dict.fromkeys(one.eviction for one in means if one.model == model):
            own = _Judge(model, eviction, means, settings)
            yield from (own.no_worse(ratio) for ratio in settings.no_worse_at)


class _Judge:
    """The bars of one model and eviction policy."""

    def __init__(self, model: str, eviction: str, means: Sequence[Comparison], settings: ClaimsConfig):
        self._model = model
        self._eviction = eviction
        self._settings = settings
        some = [one for one in means if (one.model, one.eviction) == (model, eviction)]
        self._others = [one for one in some if one.allocator != settings.allocator]
        self._claimant = next((one for one in some if one.allocator == settings.allocator), None)

    def lossless(self, ratio: float, margin: float) -> Criterion:
        asked = f"lossless at r = {ratio:g} (interval of the difference to the full cache above {-100 * margin:g})"
        figures = self._claimant.at(ratio) if self._claimant else None
        if figures is None:
            return self._not_measured(asked)
        delta = in_points(figures.delta_full, figures.delta_full_low, figures.delta_full_high)
        return self._bar(asked, figures.lossless, f"difference {delta} points")

    def gain(self, ratio: float, least: float) -> Criterion:
        return self._largest_gain(f"at least {least:g}x uniform at r = {ratio:g}", [ratio], least)

    def gain_up_to(self, most: float, least: float) -> Criterion:
        ratios = [one.ratio for one in self._claimant.figures.ratios] if self._claimant else []
        some = [ratio for ratio in ratios if ratio <= most + TIE]
        return self._largest_gain(f"at least {least:g}x uniform at some r up to {most:g}", some, least)

    def _largest_gain(self, asked: str, ratios: Sequence[float], least: float) -> Criterion:
        claimant = self._claimant
        gains = {ratio: gain for ratio in ratios if claimant and (gain := claimant.gain(ratio)) is not None}
        if claimant is None or not gains:
            return self._not_measured(asked)
        best = max(gains, key=lambda ratio: gains[ratio])
        figures = claimant.at(best)
        assert figures is not None and figures.uniform is not None
        nothing = ", which counts as one right answer" if figures.uniform_is_zero else ""
        words = f"{gains[best]:.1f}x at r = {best:g} ({figures.score:.3f} against {figures.uniform:.3f}{nothing})"
        return self._bar(asked, gains[best] >= least - TIE, words)

    def no_worse(self, ratio: float) -> Criterion:
        margin = self._settings.no_worse_margin
        asked = f"no worse than any other allocator at r = {ratio:g} (difference above {-100 * margin:g})"
        leads = {one.allocator: lead for one in self._others if (lead := one.lead(ratio))}
        if not leads:
            return self._not_measured(asked)
        behind = {name: lead for name, lead in leads.items() if lead.difference <= -margin + TIE}
        nearest = min(leads, key=lambda name: leads[name].difference)
        shown = behind or {nearest: leads[nearest]}
        words = "behind " if behind else "least lead over "
        return self._bar(asked, not behind, words + "; ".join(_lead_words(*one) for one in sorted(shown.items())))

    def _bar(self, asked: str, met: bool, figures: str) -> Criterion:
        verdict: Verdict = "met" if met else "missed"
        return Criterion(model=self._model, eviction=self._eviction, asked=asked, verdict=verdict, figures=figures)

    def _not_measured(self, asked: str) -> Criterion:
        return Criterion(model=self._model, eviction=self._eviction, asked=asked, verdict="not measured", figures="")


def _lead_words(allocator: str, lead: PairedDifference) -> str:
    return f"{allocator} {in_points(lead.difference, lead.low, lead.high)}"
