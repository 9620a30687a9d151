"""Score curves: each method's points over its ratios, with everything that the summary says about their cells."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from baklava.analysis.bootstrap import Interval
from baklava.analysis.headline import Headline, ModelFigures, RatioFigures
from baklava.evaluation.record_schema import FULL
from baklava.report.data.looks import Method, uniform_first

MEAN = "mean of all tasks"  # in place of a task's name

_COLUMNS = ("ratio", "score", "ci_low", "ci_high", "kept_fraction", "kv_bytes", "peak_kv_bytes")  # of the summary
_NOTHING = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class CurvePoint:
    """A cell, or the mean of a method's cells over a model's tasks; a difference to nothing is NaN."""

    ratio: float
    score: float
    ci_low: float
    ci_high: float
    delta_full: Interval
    delta_uniform: Interval
    kept_fraction: float
    kv_bytes: float
    peak_kv_bytes: float
    samples: str  # how many, in words


@dataclass(frozen=True)
class Curves:
    """A model's scores on one task or on the mean of its tasks.

    `by_method` has uniform first; each method's points begin with the full cache and continue in the order of the
    ratios. It is empty where nothing was compressed.
    """

    full: CurvePoint
    by_method: dict[Method, list[CurvePoint]]

    @property
    def points(self) -> list[CurvePoint]:
        """Every point, the full cache's at least once."""
        return [self.full, *(point for points in self.by_method.values() for point in points)]

    @classmethod
    def of_task(cls, rows: pd.DataFrame) -> Curves:
        """Curves from the rows of one model and task of the summary."""
        points = {
            (str(row["allocator"]), str(row["eviction"]), row["ratio"]): CurvePoint(
                **{name: row[name] for name in _COLUMNS},
                delta_full=Interval(row["delta_full"], row["delta_full_low"], row["delta_full_high"]),
                delta_uniform=Interval(row["delta_uniform"], row["delta_uniform_low"], row["delta_uniform_high"]),
                samples=f"{row['n']} samples" + (f", {row['n_failed']} more failed" if row["n_failed"] else ""),
            )
            for row in rows.sort_values("ratio").to_dict("records")
        }
        [full] = [point for (allocator, *_), point in points.items() if allocator == FULL]
        by_method: dict[Method, list[CurvePoint]] = {}
        for (allocator, eviction, _), point in points.items():
            if allocator != FULL:
                by_method.setdefault((allocator, eviction), [full]).append(point)
        return cls(full, {method: by_method[method] for method in uniform_first(by_method)})

    @classmethod
    def of_mean(cls, figures: ModelFigures, rows: pd.DataFrame) -> Curves:
        """Curves of a model's means over its tasks; `rows` are the model's in the summary."""
        of_cells = rows.groupby(["allocator", "eviction", "ratio"])[["kept_fraction", "peak_kv_bytes"]].mean()
        means: dict[Any, Any] = of_cells.to_dict("index")
        samples = f"mean of {len(figures.n)} tasks, {sum(figures.n.values())} samples"
        full = CurvePoint(
            ratio=0.0,
            score=figures.full,
            ci_low=figures.full_low,
            ci_high=figures.full_high,
            delta_full=_NOTHING,
            delta_uniform=_NOTHING,
            kept_fraction=1.0,
            kv_bytes=figures.kv_bytes_full,
            peak_kv_bytes=float(rows.loc[rows["allocator"] == FULL, "peak_kv_bytes"].mean()),
            samples=samples,
        )
        by_method = {
            (method.allocator, method.eviction): [
                full,
                *(
                    _mean_point(ratio, means[method.allocator, method.eviction, ratio.ratio], samples)
                    for ratio in method.ratios
                ),
            ]
            for method in figures.methods
        }
        return cls(full, {method: by_method[method] for method in uniform_first(by_method)})


def _mean_point(figures: RatioFigures, means: dict[str, float], samples: str) -> CurvePoint:
    uniform = (figures.delta_uniform, figures.delta_uniform_low, figures.delta_uniform_high)
    return CurvePoint(
        ratio=figures.ratio,
        score=figures.score,
        ci_low=figures.ci_low,
        ci_high=figures.ci_high,
        delta_full=Interval(figures.delta_full, figures.delta_full_low, figures.delta_full_high),
        delta_uniform=Interval(*(math.nan if value is None else value for value in uniform)),
        kept_fraction=means["kept_fraction"],
        kv_bytes=figures.kv_bytes,
        peak_kv_bytes=means["peak_kv_bytes"],
        samples=samples,
    )


def list_curves(summary: pd.DataFrame, headline: Headline) -> Iterator[tuple[str, str, Curves]]:
    """Yield (model, task, curves): for every model the mean over its tasks, then each task."""
    for model, figures in headline.models.items():
        rows = summary[summary["model"] == model]
        yield model, MEAN, Curves.of_mean(figures, rows)
        for task, task_rows in rows.groupby("task"):
            yield model, str(task), Curves.of_task(task_rows)


def score_range(largest: float) -> tuple[float, float]:
    """Limits of an axis of scores: from 0 to 1 or the largest score, with some air."""
    return -0.03, 1.05 * max(1.0, largest)
