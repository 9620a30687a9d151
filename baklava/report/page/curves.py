"""Curves of scores with confidence bands; a point tells all about its cell when hovered."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from baklava.analysis.headline import Headline, ModelFigures, RatioFigures
from baklava.evaluation.records import FULL
from baklava.report.page.lines import band, full_cache_line, method_line
from baklava.report.page.view import plain
from baklava.report.plots.curves import methods_of, uniform_first
from baklava.report.plots.score_vs_kv_bytes import unit_of
from baklava.report.plots.style import CROWD, looks

Method = tuple[str, str]

MEAN = "mean of all tasks"


@dataclass(frozen=True)
class CellPoint:
    """A cell, or the mean of a method's cells over a model's tasks; NaN where there is nothing to compare with."""

    ratio: float
    score: float
    ci_low: float
    ci_high: float
    delta_full: tuple[float, float, float]  # estimate, low, high
    delta_uniform: tuple[float, float, float]
    kept_fraction: float
    kv_bytes: float
    samples: str

    def hover(self, label: str, confidence: float) -> str:
        unit, size = unit_of(self.kv_bytes)
        lines = [
            f"<b>{plain(label)}</b>, r = {self.ratio:g}" if self.ratio else f"<b>{plain(label)}</b>",
            f"score {self.score:.3f}, {100 * confidence:g}% interval [{self.ci_low:.3f}, {self.ci_high:.3f}]",
            *(_difference("to the full cache", self.delta_full) if self.ratio else ()),
            *_difference("to uniform", self.delta_uniform),
            f"keeps {100 * self.kept_fraction:.1f}% of the entries, {self.kv_bytes / size:.2f} {unit}",
            self.samples,
        ]
        return "<br>".join(lines)


def _difference(to: str, values: tuple[float, float, float]) -> Iterator[str]:
    if not math.isnan(values[0]):
        estimate, low, high = values
        yield f"difference {to} {estimate:+.3f} [{low:+.3f}, {high:+.3f}]"


def curves(summary: pd.DataFrame, headline: Headline) -> Iterator[tuple[str, str, dict[Method, list[CellPoint]]]]:
    """(model, task, points per method), the mean over tasks first; each method's first point is the full cache."""
    for model, figures in headline.models.items():
        rows = summary[summary["model"] == model]
        yield model, MEAN, _mean(figures, rows)
        for task, own in rows.groupby("task"):
            yield model, str(task), _task(own)


def _task(rows: pd.DataFrame) -> dict[Method, list[CellPoint]]:
    found: dict[Method, list[CellPoint]] = {}
    points = {
        (row["allocator"], row["eviction"], row["ratio"]): CellPoint(
            **{name: row[name] for name in ("ratio", "score", "ci_low", "ci_high", "kept_fraction", "kv_bytes")},
            delta_full=(row["delta_full"], row["delta_full_low"], row["delta_full_high"]),
            delta_uniform=(row["delta_uniform"], row["delta_uniform_low"], row["delta_uniform_high"]),
            samples=f"{row['n']} samples" + (f", {row['n_failed']} more failed" if row["n_failed"] else ""),
        )
        for row in rows.sort_values("ratio").to_dict("records")
    }
    [full] = [point for (allocator, *_), point in points.items() if allocator == FULL]
    for (allocator, eviction, _), point in points.items():
        if allocator != FULL:
            found.setdefault((allocator, eviction), [full]).append(point)
    return {method: found[method] for method in sorted(found, key=uniform_first)} or {(FULL, "none"): [full]}


def _mean(figures: ModelFigures, rows: pd.DataFrame) -> dict[Method, list[CellPoint]]:
    kept = rows.groupby(["allocator", "eviction", "ratio"])["kept_fraction"].mean()
    samples = f"mean of {len(figures.n)} tasks, {sum(figures.n.values())} samples"
    nothing = (math.nan,) * 3
    full = CellPoint(
        *(0.0, figures.full, figures.full_low, figures.full_high, nothing, nothing),
        *(1.0, figures.kv_bytes_full, samples),
    )

    def point(method: Method, one: RatioFigures) -> CellPoint:
        uniform = (one.delta_uniform, one.delta_uniform_low, one.delta_uniform_high)
        return CellPoint(
            *(one.ratio, one.score, one.ci_low, one.ci_high),
            delta_full=(one.delta_full, one.delta_full_low, one.delta_full_high),
            delta_uniform=tuple(math.nan if value is None else value for value in uniform),  # type: ignore[arg-type]
            kept_fraction=float(kept[*method, one.ratio]),
            kv_bytes=one.kv_bytes,
            samples=samples,
        )

    found = {
        (one.allocator, one.eviction): [full, *(point((one.allocator, one.eviction), ratio) for ratio in one.ratios)]
        for one in figures.methods
    }
    return {method: found[method] for method in sorted(found, key=uniform_first)} or {(FULL, "none"): [full]}


def traces(
    points: dict[Method, list[CellPoint]],
    headline: Headline,
    x: Literal["ratio", "kv_bytes"],
    *,
    across: Sequence[float],
    unit: float = 1.0,
) -> list[Any]:
    """A band and a line per method over `x` in units of `unit`; the full cache as a dashed line over `across`."""
    styles = looks(methods_of(headline))
    opacity = 0.07 if len(styles) > CROWD else 0.16
    full = next(iter(points.values()))[0]
    drawn: list[Any] = [full_cache_line(across, full.score, full.hover("full cache", headline.confidence))]
    for method, some in points.items():
        if method in styles:
            look, places = styles[method], [getattr(point, x) / unit for point in some]
            hover = [point.hover(look.label if point.ratio else "full cache", headline.confidence) for point in some]
            low, high = [point.ci_low for point in some], [point.ci_high for point in some]
            drawn.append(band(look, places, low, high, opacity=opacity))
            drawn.append(method_line(look, places, [point.score for point in some], hover))
    return drawn


def score_axis(points: dict[Method, list[CellPoint]]) -> dict[str, Any]:
    """Scores from 0, to 1 or the largest one, as in the other figures."""
    largest = max(point.ci_high for some in points.values() for point in some)
    return {"title": {"text": "score"}, "range": [-0.03, 1.05 * max(1.0, largest)]}
