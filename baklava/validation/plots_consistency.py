"""Consistency of one model's importance: a row per estimator, a column per comparison."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator

from baklava.report.plots.heat_map import colour_bar, heat_map, panel_title
from baklava.report.plots.style import headings


def consistency(table: pd.DataFrame) -> Figure:
    """Rank correlation on the left, overlap of the most important KV caches on the right."""
    comparisons = list(dict.fromkeys(zip(table["between"], table["pair"], strict=True)))
    estimators = list(dict.fromkeys(table["estimator"]))
    figure = Figure(figsize=(12.5, 2.9 + 0.32 * len(estimators)), layout="constrained")
    headings(
        figure,
        f"{table['model'].iloc[0]}: would another profile rank the KV caches alike?",
        f"at least {table['n_prompts'].min()} prompts for each; a control that looks at nothing agrees with itself",
    )
    left, right = figure.subplots(1, 2)
    for axes, column, title in ((left, "spearman", "rank correlation"), (right, "top_overlap", "overlap of the top")):
        values = table.pivot(index="estimator", columns=["between", "pair"], values=column)
        mesh = heat_map(axes, values.loc[estimators, comparisons].to_numpy(), low=0.0, high=1.0, text=".2f")
        panel_title(axes, title, "negative drawn as 0" if column == "spearman" else "")
        _label(axes, [pair or between for between, pair in comparisons], estimators)
        colour_bar(axes, mesh)
    right.set_yticklabels([])
    return figure


def _label(axes: Axes, columns: list[str], rows: list[str]) -> None:
    for axis, names in ((axes.xaxis, columns), (axes.yaxis, rows)):
        axis.set_major_locator(FixedLocator([place + 0.5 for place in range(len(names))]))
        axis.set_major_formatter(FixedFormatter(names))
    axes.tick_params(axis="x", rotation=35)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")
