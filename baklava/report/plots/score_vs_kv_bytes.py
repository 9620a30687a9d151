"""Score against the memory that the KV caches take: one panel per model, means over its tasks."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from baklava.analysis.headline import Headline, ModelFigures
from baklava.report.data.curves import CurvePoint, Curves
from baklava.report.data.looks import INK, MAX_UNCROWDED, MUTED, Look, Method, assign_looks, list_methods
from baklava.report.data.ticks import format_tick, log_ticks
from baklava.report.plots.curves import draw_curve
from baklava.report.plots.style import FULL_CACHE, add_headings, add_method_legend, set_score_axis
from baklava.system.units import choose_unit


def draw_score_vs_kv_bytes(summary: pd.DataFrame, headline: Headline, *, peak: bool = False) -> Figure:
    """Draw memory on a logarithmic axis, with the compression ratio above it; the diamond is the full cache.

    It is that of the compressed context, or with `peak` the most that the whole answer took.
    """
    looks = assign_looks(list_methods(headline))
    n_models = len(headline.models)
    columns = min(3, n_models)
    lines = math.ceil(n_models / columns)
    width = max(7.2, 4.6 * columns + 0.4)
    figure = Figure(figsize=(width, 3.9 * lines + 0.75), layout="constrained")
    add_headings(
        figure,
        "Score against peak KV cache memory" if peak else "Score against KV cache memory",
        f"decoding: {', '.join(sorted(summary['decoding'].unique()))}; " * peak
        + f"means over tasks, per sample; bands: {100 * headline.confidence:g}% bootstrap intervals",
    )
    add_method_legend(figure, looks.values())
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for panel, (model, figures) in zip(axes.ravel(), headline.models.items(), strict=False):
        _draw_panel(panel, model, figures, Curves.of_mean(figures, summary[summary["model"] == model]), looks, peak)
    for unused in axes.ravel()[n_models:]:
        unused.set_axis_off()
    for first in axes[:, 0]:
        first.set_ylabel("score")
    return figure


def _draw_panel(
    axes: Axes, model: str, figures: ModelFigures, curves: Curves, looks: dict[Method, Look], peak: bool
) -> None:
    def bytes_of(point: CurvePoint) -> float:
        return point.peak_kv_bytes if peak else point.kv_bytes

    unit, size = choose_unit(bytes_of(curves.full))
    axes.axhline(figures.full, **FULL_CACHE)
    for method, points in curves.by_method.items():
        memory = [bytes_of(point) / size for point in points]
        draw_curve(axes, memory, points, looks[method], crowded=len(looks) > MAX_UNCROWDED)
    axes.plot([bytes_of(curves.full) / size], [figures.full], marker="D", markersize=7, color=INK, linestyle="none")
    axes.set_title(model, fontweight="bold", fontsize=12)
    if not peak and len(figures.methods) <= MAX_UNCROWDED:
        _draw_gain(axes, figures, size)
    at_ratio = {point.ratio: bytes_of(point) / size for point in curves.points if bytes_of(point) > 0}
    _set_memory_axis(axes, at_ratio, unit)  # a logarithmic axis has no 0
    set_score_axis(axes, max(point.score for point in curves.points))


def _draw_gain(axes: Axes, figures: ModelFigures, size: int) -> None:
    """Draw an arrow from uniform's score to the largest gain at the same memory whose interval is above 0."""
    certain = [
        r for method in figures.methods for r in method.ratios if (r.delta_uniform_low or 0) > 0 and r.kv_bytes > 0
    ]
    if not certain:
        return
    most = max(certain, key=lambda r: r.delta_uniform or 0)
    memory = most.kv_bytes / size
    axes.annotate(
        *("", (memory, most.score), (memory, most.uniform or 0)),
        arrowprops={"arrowstyle": "-|>", "color": MUTED, "linewidth": 1.2, "shrinkA": 5, "shrinkB": 5},
    )
    gain = f"{most.gain_over_uniform:.1f} x uniform" if most.gain_over_uniform else "uniform: 0"
    text = f"+{most.delta_uniform:.2f}\n{gain}"
    position = (
        memory,
        most.score - 0.6 * (most.score - (most.uniform or 0)),
    )  # low: where curves leave room on the left
    style: dict[str, Any] = {"va": "center", "ha": "right", "color": MUTED, "fontsize": 9}
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5}
    axes.annotate(text, position, (-8, 0), textcoords="offset points", bbox=box, **style)


def _set_memory_axis(axes: Axes, memory: dict[float, float], unit: str) -> None:
    low, high = min(memory.values()), max(memory.values())
    axes.set_xscale("log")
    axes.set_xlim(low / 1.15, high * 1.15)
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(low / 1.15, high * 1.15)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: format_tick(tick)))
    axes.set_xlabel(f"KV cache per sample ({unit}, logarithmic)")
    above = axes.secondary_xaxis("top")
    above.xaxis.set_major_locator(FixedLocator(list(memory.values())))
    above.xaxis.set_minor_locator(NullLocator())
    above.set_xticklabels([f"{ratio:g}" for ratio in memory])
    above.tick_params(labelcolor=MUTED, labelsize=8.5, length=3)
    above.spines["top"].set_visible(False)
    above.set_xlabel("compression ratio r", color=MUTED, fontsize=8.5)
