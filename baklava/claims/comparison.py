"""Compares the allocator under test with every other method of an experiment, sample by sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from pydantic import ConfigDict, Field

from baklava.analysis.bootstrap import Bootstrap
from baklava.analysis.cells import Cells
from baklava.analysis.headline import MethodFigures, RatioFigures, compute_headline
from baklava.evaluation.record_schema import FULL, Cell
from baklava.experiment.fields import FrozenModel
from baklava.experiment.paths import ratio_name
from baklava.experiment.settings import SummaryConfig

MEAN = "mean"  # over the tasks, in place of a task's name


class PairedDifference(FrozenModel):
    """Mean paired difference at a ratio, with its interval: score of the allocator under test minus a method's."""

    ratio: float
    difference: float
    low: float
    high: float


class Comparison(FrozenModel):
    """A method of a model, on one task or on the mean of all; `n` samples in total.

    `differences` holds one per ratio that both have, and none for the allocator under test itself. Files call them
    `leads`. `no_verdict` says why nothing can be said to be lossless, where that is so.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    model: str
    task: str
    n: int
    no_verdict: str | None = None
    figures: MethodFigures
    differences: tuple[PairedDifference, ...] = Field(validation_alias="leads", serialization_alias="leads")

    @property
    def lossless(self) -> str:
        """How far the method compresses without loss, in words."""
        return self.no_verdict or self.figures.describe_lossless()

    @property
    def allocator(self) -> str:
        return self.figures.allocator

    @property
    def eviction(self) -> str:
        return self.figures.eviction

    def figures_at(self, ratio: float) -> RatioFigures | None:
        """The method's figures at a ratio, None where it was not evaluated there."""
        return next((figures for figures in self.figures.ratios if _same(figures.ratio, ratio)), None)

    def difference_at(self, ratio: float) -> PairedDifference | None:
        """The paired difference at a ratio, None where there is none."""
        return next((difference for difference in self.differences if _same(difference.ratio, ratio)), None)

    def gain_at(self, ratio: float) -> float | None:
        """The method's score divided by uniform's; a uniform that scores nothing counts as one right answer."""
        figures = self.figures_at(ratio)
        if figures is None or figures.uniform is None:
            return None
        return figures.score * self.n if figures.uniform_is_zero else figures.gain_over_uniform


def _same(ratio: float, other: float) -> bool:
    return ratio_name(ratio) == ratio_name(other)


def compare_methods(cells: Cells, tested: str, settings: SummaryConfig) -> Iterator[Comparison]:
    """Compare the allocator `tested` with every method of every model, on the mean of the tasks and on each task."""
    tasks = dict.fromkeys(cell.task for cell in cells)
    scopes = {MEAN: cells, **{task: {cell: cells[cell] for cell in cells if cell.task == task} for task in tasks}}
    for scope, scope_cells in scopes.items():
        differences = _paired_differences(scope_cells, scope, tested, settings)
        headline = compute_headline(scope_cells, settings)
        for model, figures in headline.models.items():
            for method in sorted(figures.methods, key=lambda method: (method.eviction, method.allocator)):
                by_ratio = differences[_Method(model, method.allocator, method.eviction)]
                yield Comparison(
                    model=model,
                    task=scope,
                    n=sum(figures.n.values()),
                    no_verdict=headline.explain_no_verdict(model),
                    figures=method,
                    differences=tuple(by_ratio[ratio] for ratio in sorted(by_ratio)),
                )


class _Method(NamedTuple):
    model: str
    allocator: str
    eviction: str


def _paired_differences(
    cells: Cells, scope: str, tested: str, settings: SummaryConfig
) -> dict[_Method, dict[float, PairedDifference]]:
    """Score of `tested` minus that of every other method with the same eviction policy, at every ratio both have."""
    bootstrap = Bootstrap(settings.n_bootstrap, settings.confidence, settings.seed)
    compared: dict[tuple[_Method, float], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.allocator not in (FULL, tested) and cell._replace(allocator=tested) in cells:
            compared[_Method(cell.model, *cell.method), cell.ratio].append(cell)
    differences: dict[_Method, dict[float, PairedDifference]] = defaultdict(dict)
    for (method, ratio), method_cells in compared.items():
        by_task = [cells[cell._replace(allocator=tested)].score - cells[cell].score for cell in method_cells]
        identity = ("lead", tested, scope, *method, ratio)  # the words of the bootstrap's seed
        contexts = [cells[cell].context for cell in method_cells]
        interval = bootstrap.mean_of_means(by_task, *identity, clusters=contexts)
        differences[method][ratio] = PairedDifference(
            ratio=ratio, difference=interval.estimate, low=interval.low, high=interval.high
        )
    return differences
