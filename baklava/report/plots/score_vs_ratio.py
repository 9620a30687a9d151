"""Score against compression ratio: per model the mean over its tasks, then each task."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MultipleLocator

from baklava.analysis.headline import Headline, ModelFigures
from baklava.report.plots.curves import Curve, mean_curves, methods_of, task_curves
from baklava.report.plots.style import CROWD, FULL_CACHE, MUTED, Look, headings, looks, method_legend, score_axis

MAX_COLUMNS = 4
TINT = "#fbf6ec"  # behind the mean, to set it apart from the tasks

Looks = dict[tuple[str, str], Look]


def score_vs_ratio(summary: pd.DataFrame, headline: Headline) -> Figure:
    """A block of panels per model, a line per method with its confidence band, the full cache as dashed reference."""
    styles = looks(methods_of(headline))
    panels = [1 + len(figures.n) for figures in headline.models.values()]
    columns = min(MAX_COLUMNS, max(panels))
    lines = [math.ceil(n / columns) for n in panels]
    figure = Figure(figsize=(2.9 * columns + 0.3, 2.75 * sum(lines) + 0.55), layout="constrained")
    headings(figure, "Score against compression ratio", _subtitle(headline))
    method_legend(figure, styles.values())
    blocks = figure.subfigures(len(panels), 1, height_ratios=lines, squeeze=False)[:, 0]
    for block, n_lines, (model, figures) in zip(blocks, lines, headline.models.items(), strict=True):
        block.suptitle(model, x=0.012, ha="left", fontsize=12, fontweight="bold")
        _model(block, figures, summary[summary["model"] == model], styles, shape=(n_lines, columns))
    return figure


def score_vs_ratio_of_task(rows: pd.DataFrame, headline: Headline) -> Figure:
    """The rows of one model and task by themselves, in the colours of all figures."""
    model, task, n = rows[["model", "task", "n"]].iloc[0]
    styles = looks(methods_of(headline))
    figure = Figure(figsize=(7.2, 4.3), layout="constrained")
    headings(
        figure,
        f"{model}: {task}",
        f"{n} samples; bands: {100 * headline.confidence:g}% bootstrap intervals",
    )
    method_legend(figure, styles.values())
    axes = figure.subplots()
    _panel(axes, "", task_curves(rows), styles, float(rows["score"].max()))
    axes.set_ylabel("score")
    axes.set_xlabel("compression ratio r")
    return figure


def _subtitle(headline: Headline) -> str:
    counts = sorted({n for figures in headline.models.values() for n in figures.n.values()})
    samples = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"{samples} samples per task; bands: {100 * headline.confidence:g}% bootstrap intervals; lossless: "
        f"that interval of the difference to the full cache stays above -{headline.margin:g}"
    )


def _model(block: SubFigure, figures: ModelFigures, rows: pd.DataFrame, styles: Looks, shape: tuple[int, int]) -> None:
    axes = block.subplots(*shape, sharey=True, squeeze=False)
    mean, *tasks = used = list(axes.ravel()[: 1 + len(figures.n)])
    for unused in axes.ravel()[len(used) :]:
        unused.set_axis_off()
    largest = float(rows["score"].max())
    _panel(mean, f"mean over {len(tasks)} tasks" if len(tasks) > 1 else "mean", mean_curves(figures), styles, largest)
    mean.set_facecolor(TINT)
    if len(figures.methods) <= CROWD:
        _lossless(mean, figures, styles)
    for panel, task in zip(tasks, figures.n, strict=True):
        _panel(panel, task, task_curves(rows[rows["task"] == task]), styles, largest)
    for first in axes[:, 0]:
        first.set_ylabel("score")
    for lowest in used[-shape[1] :]:
        lowest.set_xlabel("compression ratio r")


def _panel(axes: Axes, title: str, curves: list[Curve], styles: Looks, largest: float) -> None:
    axes.set_title(title)
    if curves:
        axes.axhline(curves[0].score[0], **FULL_CACHE)
    for curve in curves:
        curve.draw(axes, curve.ratio, styles[curve.method], crowded=len(styles) > CROWD)
    axes.set_xlim(-0.03, 1.0)
    axes.xaxis.set_major_locator(MultipleLocator(0.2))
    score_axis(axes, largest)


def _lossless(axes: Axes, figures: ModelFigures, styles: Looks) -> None:
    """The largest lossless ratio of every method, in the corner that falling curves leave free."""
    axes.text(0.05, 0.05 + 0.09 * len(figures.methods), "lossless up to", **_corner(axes, MUTED))
    for i, method in enumerate(reversed(figures.methods)):
        look, ratio = styles[method.allocator, method.eviction], method.largest_lossless_ratio
        axes.text(
            0.05,
            0.05 + 0.09 * i,
            f"{look.label}: {f'r = {ratio:g}' if ratio else 'none'}",
            **_corner(axes, look.colour),
        )


def _corner(axes: Axes, colour: str) -> dict[str, Any]:
    return {"transform": axes.transAxes, "color": colour, "fontsize": 8.5}
