"""History of a search: the loss of every trial, a panel per ratio."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from baklava.evaluation.record_schema import UNIFORM
from baklava.report.data.looks import MUTED, assign_looks
from baklava.report.data.ticks import format_tick, log_ticks
from baklava.report.plots.heat_map import set_panel_title
from baklava.report.plots.style import FULL_CACHE, add_headings

WIDTH, HEIGHT = 3.1, 2.9  # inches of a panel
PER_LINE = 3


def draw_search_history(trace: pd.DataFrame) -> Figure:
    """Draw every trial's loss; the line is the best so far.

    Pruned trials are hollow: their loss is that of the prompts that they saw.
    """
    [(model, allocator, eviction)] = trace[["model", "allocator", "eviction"]].drop_duplicates().to_numpy().tolist()
    by_ratio = [(ratio, trace[trace["ratio"] == ratio]) for ratio in sorted(trace["ratio"].unique().tolist())]
    columns = min(PER_LINE, len(by_ratio))
    lines = -(-len(by_ratio) // columns)
    figure = Figure(figsize=(max(8.0, WIDTH * columns), HEIGHT * lines + 1.1), layout="constrained")
    looks = assign_looks([(UNIFORM, eviction), (allocator, eviction)])
    colour, uniform_colour = looks[allocator, eviction].colour, looks[UNIFORM, eviction].colour
    add_headings(
        figure, f"{model}: search of {allocator} / {eviction}", "loss of the calibration prompts' continuations"
    )
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    for panel, (ratio, trials) in zip(axes, by_ratio, strict=False):
        _draw_panel(panel, ratio, trials, colour, uniform_colour)
    for unused in axes[len(by_ratio) :]:
        unused.set_axis_off()
    point: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 5}
    figure.legend(
        handles=[
            Line2D([], [], color=colour, label="saw every prompt", **point),
            Line2D([], [], color=MUTED, markerfacecolor="none", label="dropped out", **point),
            Line2D([], [], color=colour, label="best so far"),
            Line2D([], [], color=uniform_colour, linewidth=1.2, label="uniform"),
            Line2D([], [], **FULL_CACHE, label="full cache"),
        ],
        loc="outside lower left",
        ncols=5,
    )
    return figure


def _draw_panel(axes: Axes, ratio: float, trials: pd.DataFrame, colour: str, uniform_colour: str) -> None:
    trials = trials.sort_values("trial")
    complete, pruned = trials[trials["complete"]], trials[~trials["complete"]]
    axes.axhline(trials["loss_full"].iloc[0], **FULL_CACHE)
    axes.axhline(trials["loss"].iloc[0], color=uniform_colour, linewidth=1.2)
    axes.plot(pruned["trial"], pruned["loss"], "o", color=MUTED, markerfacecolor="none", markersize=3.5)
    axes.plot(complete["trial"], complete["loss"], "o", color=colour, markersize=4)
    axes.step(complete["trial"], complete["loss"].cummin(), where="post", color=colour)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator(log_ticks(*axes.get_ylim())))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: format_tick(tick)))
    axes.set_xlabel("trial")
    set_panel_title(
        axes, f"r = {ratio:g}", f"best loss {complete['loss'].min():.3g}, uniform {trials['loss'].iloc[0]:.3g}"
    )
