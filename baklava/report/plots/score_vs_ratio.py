"""Score against compression ratio: per model the mean over its tasks, then each task."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MultipleLocator

from baklava.analysis.headline import Headline, ModelFigures
from baklava.report.data.curves import Curves
from baklava.report.data.looks import MAX_UNCROWDED, MUTED, Look, Method, assign_looks, list_methods
from baklava.report.plots.curves import draw_curve
from baklava.report.plots.style import FULL_CACHE, add_headings, add_method_legend, set_score_axis

MAX_COLUMNS = 4
WIDTH = 9.8  # inches, at least, for the subtitle
TINT = "#fbf6ec"  # behind the mean, to set it apart from the tasks

Looks = dict[Method, Look]


def draw_score_vs_ratio(summary: pd.DataFrame, headline: Headline) -> Figure:
    """Draw a block of panels per model: a line per method with its confidence band, the full cache dashed."""
    looks = assign_looks(list_methods(headline))
    panels = [1 + len(figures.n) for figures in headline.models.values()]
    columns = min(MAX_COLUMNS, max(panels))
    lines = [math.ceil(n / columns) for n in panels]
    figure = Figure(figsize=(max(WIDTH, 2.9 * columns + 0.3), 2.75 * sum(lines) + 0.55), layout="constrained")
    add_headings(figure, "Score against compression ratio", _subtitle(headline))
    add_method_legend(figure, looks.values())
    blocks = figure.subfigures(len(panels), 1, height_ratios=lines, squeeze=False)[:, 0]
    for block, n_lines, (model, figures) in zip(blocks, lines, headline.models.items(), strict=True):
        block.suptitle(model, x=0.012, ha="left", fontsize=12, fontweight="bold")
        own = summary[summary["model"] == model]
        _draw_model(block, figures, own, looks, (n_lines, columns), reason=headline.explain_no_verdict(model))
    return figure


def draw_score_vs_ratio_of_task(rows: pd.DataFrame, headline: Headline) -> Figure:
    """Draw the rows of one model and task by themselves, in the colours of all figures."""
    model, task, n = rows[["model", "task", "n"]].iloc[0]
    looks = assign_looks(list_methods(headline))
    figure = Figure(figsize=(7.2, 4.3), layout="constrained")
    add_headings(
        figure,
        f"{model}: {task}",
        f"{n} samples; bands: {100 * headline.confidence:g}% bootstrap intervals",
    )
    add_method_legend(figure, looks.values())
    axes = figure.subplots()
    _draw_panel(axes, "", Curves.of_task(rows), looks, float(rows["score"].max()))
    axes.set_ylabel("score")
    axes.set_xlabel("compression ratio r")
    return figure


def _subtitle(headline: Headline) -> str:
    counts = sorted({n for figures in headline.models.values() for n in figures.n.values()})
    samples = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"{samples} samples per task; bands: {100 * headline.confidence:g}% bootstrap intervals; lossless: that "
        f"interval of the difference to the full cache stays above {-100 * headline.margin:g} points"
    )


def _draw_model(
    block: SubFigure,
    figures: ModelFigures,
    rows: pd.DataFrame,
    looks: Looks,
    shape: tuple[int, int],
    *,
    reason: str | None,
) -> None:
    axes = block.subplots(*shape, sharey=True, squeeze=False)
    mean, *tasks = used = list(axes.ravel()[: 1 + len(figures.n)])
    for unused in axes.ravel()[len(used) :]:
        unused.set_axis_off()
    largest = float(rows["score"].max())
    title = f"mean over {len(tasks)} tasks" if len(tasks) > 1 else "mean"
    _draw_panel(mean, title, Curves.of_mean(figures, rows), looks, largest)
    mean.set_facecolor(TINT)
    if len(figures.methods) <= MAX_UNCROWDED:
        _write_lossless(mean, figures, looks, reason)
    for panel, task in zip(tasks, figures.n, strict=True):
        _draw_panel(panel, task, Curves.of_task(rows[rows["task"] == task]), looks, largest)
    for first in axes[:, 0]:
        first.set_ylabel("score")
    for lowest in used[-shape[1] :]:
        lowest.set_xlabel("compression ratio r")


def _draw_panel(axes: Axes, title: str, curves: Curves, looks: Looks, largest: float) -> None:
    axes.set_title(title)
    if curves.by_method:
        axes.axhline(curves.full.score, **FULL_CACHE)
    for method, points in curves.by_method.items():
        ratios = [point.ratio for point in points]
        draw_curve(axes, ratios, points, looks[method], crowded=len(looks) > MAX_UNCROWDED)
    axes.set_xlim(-0.03, 1.0)
    axes.xaxis.set_major_locator(MultipleLocator(0.2))
    set_score_axis(axes, largest)


def _write_lossless(axes: Axes, figures: ModelFigures, looks: Looks, reason: str | None) -> None:
    """Write how far every method compresses without loss in the corner that falling curves leave free, or why not.

    Where no ratio is lossless, the difference at the first one says so: a flat curve may be too uncertain.
    """
    if reason is not None:
        axes.text(0.05, 0.05 if figures.full > 0.5 else 0.9, reason, **_corner(axes, MUTED))
        return
    lines = [("lossless up to", MUTED, 8.5)]
    for method in figures.methods:
        colour = looks[method.allocator, method.eviction].colour
        label = looks[method.allocator, method.eviction].label
        lines.append((f"{label}: {method.describe_lossless()}", colour, 8.5))
        if why := method.explain_none():
            lines.append((f"  {why}", MUTED, 7.5))
    for i, (text, colour, size) in enumerate(reversed(lines)):
        axes.text(0.05, 0.05 + 0.085 * i, text, **_corner(axes, colour, size))


def _corner(axes: Axes, colour: str, size: float = 8.5) -> dict[str, Any]:
    return {"transform": axes.transAxes, "color": colour, "fontsize": size}
