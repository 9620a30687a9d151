"""Curves of scores with confidence bands; a point tells all about its cell when hovered."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from baklava.analysis.bootstrap import Interval
from baklava.analysis.headline import Headline
from baklava.report.data.curves import CurvePoint, Curves, score_range
from baklava.report.data.looks import MAX_UNCROWDED, assign_looks, list_methods
from baklava.report.page.lines import draw_band, draw_full_cache_line, draw_method_line
from baklava.report.page.view import escape
from baklava.system.units import choose_unit


def draw_curves(
    curves: Curves,
    headline: Headline,
    x: Literal["ratio", "kv_bytes"],
    *,
    across: Sequence[float],
    unit: float = 1.0,
) -> list[Any]:
    """A band and a line per method over `x` in units of `unit`; the full cache as a dashed line over `across`."""
    looks = assign_looks(list_methods(headline))
    opacity = 0.07 if len(looks) > MAX_UNCROWDED else 0.16
    full_hover = _hover(curves.full, "full cache", headline.confidence)
    traces: list[Any] = [draw_full_cache_line(across, curves.full.score, full_hover)]
    for method, points in curves.by_method.items():
        look, xs = looks[method], [getattr(point, x) / unit for point in points]
        hovers = [_hover(point, look.label if point.ratio else "full cache", headline.confidence) for point in points]
        low, high = [point.ci_low for point in points], [point.ci_high for point in points]
        traces.append(draw_band(look, xs, low, high, opacity=opacity))
        traces.append(draw_method_line(look, xs, [point.score for point in points], hovers))
    return traces


def score_axis(curves: Curves) -> dict[str, Any]:
    """An axis of scores that the bands fit into."""
    low, high = score_range(max(point.ci_high for point in curves.points))
    return {"title": {"text": "score"}, "range": [low, high]}


def _hover(point: CurvePoint, label: str, confidence: float) -> str:
    """What a point tells, as HTML."""
    unit, size = choose_unit(point.kv_bytes)
    lines = [
        f"<b>{escape(label)}</b>, r = {point.ratio:g}" if point.ratio else f"<b>{escape(label)}</b>",
        f"score {point.score:.3f}, {100 * confidence:g}% interval [{point.ci_low:.3f}, {point.ci_high:.3f}]",
        *(_difference("to the full cache", point.delta_full) if point.ratio else ()),
        *_difference("to uniform", point.delta_uniform),
        f"keeps {100 * point.kept_fraction:.1f}% of the entries, {point.kv_bytes / size:.2f} {unit}",
        point.samples,
    ]
    return "<br>".join(lines)


def _difference(to: str, delta: Interval) -> Iterator[str]:
    if not math.isnan(delta.estimate):
        yield f"difference {to} {delta.estimate:+.3f} [{delta.low:+.3f}, {delta.high:+.3f}]"
