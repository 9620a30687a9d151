"""The headline figures: how far each method compresses without loss, and what it gains over uniform budgets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from baklava.analysis.bootstrap import Bootstrap, Interval
from baklava.analysis.cells import Cells
from baklava.analysis.verdict import NO_RATIO, TIE, explain_no_verdict, in_points
from baklava.errors import UserError
from baklava.evaluation.record_schema import FULL, Cell
from baklava.experiment.compose import check
from baklava.experiment.fields import FrozenModel
from baklava.experiment.settings import SummaryConfig
from baklava.system.files import read_json, write_json

SCHEMA = 1


class RatioFigures(FrozenModel):
    """One method at one ratio; scores, differences and bytes are means over the tasks.

    `uniform`, the differences to it and the gain (score divided by uniform's score) are null where uniform was not
    evaluated. The gain is also null where uniform scores 0; `uniform_is_zero` says so. `lossless` is null where there
    is no verdict (`explain_no_verdict`).
    """

    ratio: float
    score: float
    ci_low: float
    ci_high: float
    full: float
    delta_full: float
    delta_full_low: float
    delta_full_high: float
    lossless: bool | None
    uniform: float | None
    delta_uniform: float | None
    delta_uniform_low: float | None
    delta_uniform_high: float | None
    gain_over_uniform: float | None
    uniform_is_zero: bool
    kv_bytes: float


class MethodFigures(FrozenModel):
    """One method of a model. `largest_lossless_ratio` is 0 where no ratio is lossless, null where there is no verdict.

    It is the largest ratio up to which every ratio is lossless: a fixed-sequence test. Ratios are tested in ascending
    order, each at the full level, and the first that is not lossless ends the test; so testing many ratios does not
    raise the chance of a false "lossless". The single `lossless` flags together have no such guarantee, nor have
    several methods.
    """

    allocator: str
    eviction: str
    largest_lossless_ratio: float | None
    ratios: tuple[RatioFigures, ...]

    def describe_lossless(self) -> str:
        """How far it compresses without loss, where there is a verdict."""
        return f"r = {self.largest_lossless_ratio:g}" if self.largest_lossless_ratio else NO_RATIO

    def explain_none(self) -> str:
        """The difference at the first ratio, in points, where no ratio is lossless; else nothing."""
        if self.largest_lossless_ratio != 0 or not self.ratios:
            return ""
        first = self.ratios[0]
        return f"r = {first.ratio:g}: {in_points(first.delta_full, first.delta_full_low, first.delta_full_high)}"


class ModelFigures(FrozenModel):
    """One model: the full cache, then each method. `n` is the number of samples per task.

    `n_contexts` is that of the contexts that they ask about, on which it depends whether there is a verdict; empty in
    older files, where each sample had its own.
    """

    n: dict[str, int]
    n_contexts: dict[str, int] = Field(default_factory=dict)
    full: float
    full_low: float
    full_high: float
    kv_bytes_full: float
    methods: tuple[MethodFigures, ...]


class Headline(FrozenModel):
    """The content of `headline.json`, with the settings that the figures depend on."""

    margin: float
    confidence: float
    n_bootstrap: int
    seed: int
    models: dict[str, ModelFigures]

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"), schema=SCHEMA)

    @classmethod
    def load(cls, path: Path) -> Headline:
        """Read a headline file. Raises `UserError` for a missing, broken or newer file."""
        return check(cls, read_json(path, schema=SCHEMA, what="headline"), source=str(path))

    def explain_no_verdict(self, model: str) -> str | None:
        """Why nothing can be said to be lossless on a model, or None where it can."""
        figures = self.models[model]
        n = figures.n_contexts or figures.n
        return explain_no_verdict(figures.full, n, margin=self.margin, confidence=self.confidence)

    def describe_lossless(self, model: str, method: MethodFigures) -> str:
        """How far the method compresses without loss, in the words of every table and figure."""
        return self.explain_no_verdict(model) or method.describe_lossless()


def compute_headline(cells: Cells, settings: SummaryConfig) -> Headline:
    """Compute the headline figures. Raises `UserError` where a method misses one of a model's tasks."""
    bootstrap = Bootstrap(settings.n_bootstrap, settings.confidence, settings.seed)
    by_model: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_model[cell.model].append(cell)
    return Headline(
        margin=settings.margin,
        confidence=settings.confidence,
        n_bootstrap=settings.n_bootstrap,
        seed=settings.seed,
        models={
            model: _ModelCells(cells, own, bootstrap, settings).figures() for model, own in sorted(by_model.items())
        },
    )


class _ModelCells:
    """The cells of one model, averaged over its tasks."""

    def __init__(self, cells: Cells, own: Sequence[Cell], bootstrap: Bootstrap, settings: SummaryConfig):
        self._cells = cells
        self._bootstrap = bootstrap
        self._margin = settings.margin
        self._full = [cell for cell in own if cell.allocator == FULL]
        self._compressed: dict[tuple[str, str], dict[float, list[Cell]]] = defaultdict(lambda: defaultdict(list))
        for cell in own:
            if cell.allocator != FULL:
                self._compressed[cell.method][cell.ratio].append(cell)
        self._check()
        self._n = {cell.task: len(self._score(cell)) for cell in self._full}
        self._n_contexts = {cell.task: len(set(cells[cell].context)) for cell in self._full}
        reason = explain_no_verdict(
            self._mean_score(self._full), self._n_contexts, margin=settings.margin, confidence=settings.confidence
        )
        self._decidable = reason is None

    def _check(self) -> None:
        tasks = [cell.task for cell in self._full]
        if len(set(tasks)) < len(tasks):
            raise UserError(
                f"the records of {self._full[0].model} mix several protocols, seeds or lengths; "
                "run `baklava evaluate` again for all tasks"
            )
        for by_ratio in self._compressed.values():
            for cells in by_ratio.values():
                missing = sorted(set(tasks) - {cell.task for cell in cells})
                if missing:
                    raise UserError(f"no records of task {missing[0]} where there are some of {cells[0]}")

    def figures(self) -> ModelFigures:
        full = self._interval("score", self._full, [self._score(cell) for cell in self._full])
        return ModelFigures(
            n=self._n,
            n_contexts=self._n_contexts,
            full=full.estimate,
            full_low=full.low,
            full_high=full.high,
            kv_bytes_full=self._mean_bytes(self._full),
            methods=tuple(self._method(*method) for method in sorted(self._compressed)),
        )

    def _method(self, allocator: str, eviction: str) -> MethodFigures:
        by_ratio: Mapping[float, list[Cell]] = self._compressed[allocator, eviction]
        ratios = tuple(self._ratio(by_ratio[ratio]) for ratio in sorted(by_ratio))
        lossless = 0.0
        for figures in ratios:
            if not figures.lossless:
                break
            lossless = figures.ratio
        return MethodFigures(
            allocator=allocator,
            eviction=eviction,
            largest_lossless_ratio=lossless if self._decidable else None,
            ratios=ratios,
        )

    def _ratio(self, cells: list[Cell]) -> RatioFigures:
        score = self._interval("score", cells, [self._score(cell) for cell in cells])
        full = self._interval("full", cells, [self._score(cell) - self._score(cell.full) for cell in cells])
        return RatioFigures(
            ratio=cells[0].ratio,
            score=score.estimate,
            ci_low=score.low,
            ci_high=score.high,
            full=self._mean_score([cell.full for cell in cells]),
            delta_full=full.estimate,
            delta_full_low=full.low,
            delta_full_high=full.high,
            lossless=full.low >= -self._margin - TIE if self._decidable else None,
            **self._against_uniform(cells, score.estimate),
            kv_bytes=self._mean_bytes(cells),
        )

    def _against_uniform(self, cells: list[Cell], score: float) -> dict[str, Any]:
        names = ("delta_uniform", "delta_uniform_low", "delta_uniform_high")
        if any(cell.uniform not in self._cells for cell in cells):
            return {**dict.fromkeys(("uniform", *names, "gain_over_uniform")), "uniform_is_zero": False}
        uniform = self._mean_score([cell.uniform for cell in cells])
        delta = self._interval("uniform", cells, [self._score(cell) - self._score(cell.uniform) for cell in cells])
        return {
            "uniform": uniform,
            **dict(zip(names, delta, strict=True)),
            "gain_over_uniform": score / uniform if uniform > 0 else None,
            "uniform_is_zero": uniform == 0,
        }

    def _score(self, cell: Cell) -> NDArray[np.float64]:
        return self._cells[cell].score

    def _interval(self, what: str, cells: list[Cell], values: list[NDArray[np.float64]]) -> Interval:
        cell = cells[0]
        contexts = [self._cells[cell].context for cell in cells]
        return self._bootstrap.mean_of_means(values, what, cell.model, *cell.method, cell.ratio, clusters=contexts)

    def _mean_score(self, cells: list[Cell]) -> float:
        return float(np.mean([self._score(cell).mean() for cell in cells]))

    def _mean_bytes(self, cells: list[Cell]) -> float:
        return float(np.mean([self._cells[cell].kv_bytes.mean() for cell in cells]))
