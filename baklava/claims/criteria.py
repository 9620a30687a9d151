"""Evaluates the criteria that an allocator is held to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from baklava.analysis.verdict import TIE, in_points, scores_nothing
from baklava.claims.comparison import MEAN, Comparison, PairedDifference
from baklava.experiment.fields import FrozenModel
from baklava.experiment.settings import ClaimsConfig, SummaryConfig

Verdict = Literal["met", "missed", "no verdict", "not measured"]


class Criterion(FrozenModel):
    """One criterion for one model and eviction policy; `figures` says in words what the verdict rests on."""

    model: str
    eviction: str
    asked: str
    verdict: Verdict
    figures: str


def evaluate_criteria(
    comparisons: Sequence[Comparison], settings: ClaimsConfig, summary: SummaryConfig
) -> Iterator[Criterion]:
    """Evaluate every criterion for every model, on the mean of the tasks.

    A criterion about which the records say nothing is "not measured".
    """
    means = [comparison for comparison in comparisons if comparison.task == MEAN]
    for model in dict.fromkeys(comparison.model for comparison in means):
        for eviction in settings.evictions:
            criteria = _Criteria(model, eviction, means, settings, summary.margin)
            yield from (criteria.lossless(ratio) for ratio in settings.lossless_at)
            yield from (criteria.gain(ratio, min_gain) for ratio, min_gain in settings.gain_at.items())
            yield from (criteria.gain_up_to(ratio, min_gain) for ratio, min_gain in settings.gain_up_to.items())
        for eviction in dict.fromkeys(comparison.eviction for comparison in means if comparison.model == model):
            criteria = _Criteria(model, eviction, means, settings, summary.margin)
            yield from (criteria.no_worse(ratio) for ratio in settings.no_worse_at)


class _Criteria:
    """The criteria of one model and eviction policy."""

    def __init__(self, model: str, eviction: str, means: Sequence[Comparison], settings: ClaimsConfig, margin: float):
        self._model = model
        self._eviction = eviction
        self._settings = settings
        self._margin = margin
        by_allocator = {
            comparison.allocator: comparison
            for comparison in means
            if (comparison.model, comparison.eviction) == (model, eviction)
        }
        self._tested = by_allocator.pop(settings.allocator, None)
        self._others = by_allocator

    def lossless(self, ratio: float) -> Criterion:
        asked = (
            f"lossless at r = {ratio:g}, tested alone (interval of the difference to the full cache above "
            f"{-100 * self._margin:g})"
        )
        figures = self._tested.figures_at(ratio) if self._tested else None
        if self._tested is None or figures is None:
            return self._not_measured(asked)
        if self._tested.no_verdict is not None:
            return self._criterion(asked, "no verdict", self._tested.no_verdict)
        difference = in_points(figures.delta_full, figures.delta_full_low, figures.delta_full_high)
        return self._evaluated(asked, bool(figures.lossless), f"difference {difference} points")

    def gain(self, ratio: float, min_gain: float) -> Criterion:
        return self._largest_gain(f"at least {min_gain:g}x uniform at r = {ratio:g}", [ratio], min_gain)

    def gain_up_to(self, max_ratio: float, min_gain: float) -> Criterion:
        asked = f"at least {min_gain:g}x uniform at some r up to {max_ratio:g}"
        ratios = [figures.ratio for figures in self._tested.figures.ratios] if self._tested else []
        return self._largest_gain(asked, [ratio for ratio in ratios if ratio <= max_ratio + TIE], min_gain)

    def _largest_gain(self, asked: str, ratios: Sequence[float], min_gain: float) -> Criterion:
        tested = self._tested
        gains = {ratio: gain for ratio in ratios if tested and (gain := tested.gain_at(ratio)) is not None}
        if tested is None or not gains:
            return self._not_measured(asked)
        best = max(gains, key=lambda ratio: gains[ratio])
        figures = tested.figures_at(best)
        assert figures is not None and figures.uniform is not None
        note = ", which counts as one right answer" if figures.uniform_is_zero else ""
        words = f"{gains[best]:.1f}x at r = {best:g} ({figures.score:.3f} against {figures.uniform:.3f}{note})"
        return self._evaluated(asked, gains[best] >= min_gain - TIE, words)

    def no_worse(self, ratio: float) -> Criterion:
        margin = self._settings.no_worse_margin
        asked = f"no worse than any other allocator at r = {ratio:g} (difference above {-100 * margin:g})"
        others = self._others.items()
        differences = {name: difference for name, other in others if (difference := other.difference_at(ratio))}
        if not differences:
            return self._not_measured(asked)
        better = {name: paired for name, paired in differences.items() if paired.difference <= -margin + TIE}
        nearest = min(differences, key=lambda name: differences[name].difference)
        shown = better or {nearest: differences[nearest]}
        words = "; ".join(_named(name, shown[name]) for name in sorted(shown))
        return self._evaluated(asked, not better, ("behind " if better else "least lead over ") + words)

    def _evaluated(self, asked: str, met: bool, figures: str) -> Criterion:
        if self._tested is not None and scores_nothing(self._tested.figures.ratios[0].full, self._margin):
            return self._criterion(asked, "no verdict", self._tested.no_verdict or "")
        return self._criterion(asked, "met" if met else "missed", figures)

    def _not_measured(self, asked: str) -> Criterion:
        return self._criterion(asked, "not measured", "")

    def _criterion(self, asked: str, verdict: Verdict, figures: str) -> Criterion:
        return Criterion(model=self._model, eviction=self._eviction, asked=asked, verdict=verdict, figures=figures)


def _named(allocator: str, paired: PairedDifference) -> str:
    return f"{allocator} {in_points(paired.difference, paired.low, paired.high)}"
