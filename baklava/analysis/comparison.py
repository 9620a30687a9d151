"""One method beside the allocator whose claims are judged: the rows of the table of claims."""

from __future__ import annotations

from baklava.analysis.headline import MethodFigures, RatioFigures
from baklava.experiment.paths import ratio_name
from baklava.experiment.schema import FrozenModel

MEAN = "mean"  # over the tasks, in place of a task's name


class PairedDifference(FrozenModel):
    """How much more the claimant scores than a method at a ratio: the mean paired difference and its interval."""

    ratio: float
    difference: float
    low: float
    high: float


class Comparison(FrozenModel):
    """A method of a model, on one task or on the mean of all; `n` samples in total.

    `leads` holds a lead per ratio, and none for the claimant itself.
    """

    model: str
    task: str
    n: int
    figures: MethodFigures
    leads: tuple[PairedDifference, ...]

    @property
    def allocator(self) -> str:
        return self.figures.allocator

    @property
    def eviction(self) -> str:
        return self.figures.eviction

    def at(self, ratio: float) -> RatioFigures | None:
        """Its figures at a ratio, None where it was not evaluated there."""
        return next((one for one in self.figures.ratios if ratio_name(one.ratio) == ratio_name(ratio)), None)

    def lead(self, ratio: float) -> PairedDifference | None:
        """The claimant's lead at a ratio."""
        return next((one for one in self.leads if ratio_name(one.ratio) == ratio_name(ratio)), None)

    def gain(self, ratio: float) -> float | None:
        """Its score divided by uniform's at a ratio; a uniform that scores nothing counts as one right answer."""
        figures = self.at(ratio)
        if figures is None or figures.uniform is None:
            return None
        return figures.score * self.n if figures.uniform_is_zero else figures.gain_over_uniform
