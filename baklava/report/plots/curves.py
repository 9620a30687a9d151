"""A score curve with its confidence band."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from baklava.report.data.curves import CurvePoint
from baklava.report.data.looks import Look
from baklava.report.plots.style import line_style


def draw_curve(
    axes: Axes, x: Sequence[float], points: Sequence[CurvePoint], look: Look, *, crowded: bool = False
) -> None:
    """Draw the scores of `points` over `x`, one value for each; bands are fainter where many lie over each other."""
    low, high = [point.ci_low for point in points], [point.ci_high for point in points]
    axes.fill_between(x, low, high, color=look.colour, alpha=0.06 if crowded else 0.17, linewidth=0)
    axes.plot(x, [point.score for point in points], **line_style(look))
