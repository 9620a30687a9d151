"""What the score figures draw: a curve per method that starts at the full cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from baklava.analysis.headline import Headline, ModelFigures
from baklava.evaluation.records import FULL, UNIFORM
from baklava.report.plots.style import Look


@dataclass(frozen=True, eq=False)
class Curve:
    """Score of one method over its ratios, each array `[n_points]`; the first point is the full cache."""

    method: tuple[str, str]
    ratio: NDArray[np.float64]
    kv_bytes: NDArray[np.float64]
    score: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def draw(self, axes: Axes, x: NDArray[np.float64], look: Look, *, crowded: bool) -> None:
        """A line with its confidence band over `x` `[n_points]`."""
        band = 0.06 if crowded else 0.17
        axes.fill_between(x, self.low, self.high, color=look.colour, alpha=band, linewidth=0)
        axes.plot(x, self.score, **look.line)


CurvePoint = Sequence[float]  # ratio, bytes, score, low, high


def mean_curves(figures: ModelFigures) -> list[Curve]:
    """Means over a model's tasks."""
    full = (0.0, figures.kv_bytes_full, figures.full, figures.full_low, figures.full_high)
    return _in_order(
        _curve(
            (method.allocator, method.eviction),
            [full, *((r.ratio, r.kv_bytes, r.score, r.ci_low, r.ci_high) for r in method.ratios)],
        )
        for method in figures.methods
    )


def task_curves(rows: pd.DataFrame) -> list[Curve]:
    """Curves from the rows of one model and task of the summary."""
    rows = rows.sort_values("ratio")
    points = rows[["ratio", "kv_bytes", "score", "ci_low", "ci_high"]]
    is_full = rows["allocator"] == FULL
    full = points[is_full].to_numpy().tolist()
    return _in_order(
        _curve((str(allocator), str(eviction)), [*full, *points.loc[own.index].to_numpy().tolist()])
        for (allocator, eviction), own in rows[~is_full].groupby(["allocator", "eviction"])
    )


def methods_of(headline: Headline) -> list[tuple[str, str]]:
    """Every method of any model (allocator, eviction), uniform first."""
    methods = {(one.allocator, one.eviction) for model in headline.models.values() for one in model.methods}
    return sorted(methods, key=uniform_first)


def uniform_first(method: tuple[str, str]) -> tuple[bool, tuple[str, str]]:
    """Uniform first, so that it is drawn below what is compared with it."""
    return method[0] != UNIFORM, method


def _in_order(curves: Iterable[Curve]) -> list[Curve]:
    return sorted(curves, key=lambda curve: uniform_first(curve.method))


def _curve(method: tuple[str, str], points: Sequence[CurvePoint]) -> Curve:
    return Curve(method, *np.array(points, dtype=np.float64).T)
