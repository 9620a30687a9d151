"""Ranking quality of one model's estimators: agreement with measured importance, for every eviction policy."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from baklava.report.plots.bars import grouped_bars
from baklava.report.plots.style import headings, nothing_to_draw


def ranking(table: pd.DataFrame) -> Figure:
    """Rank correlation on the left, overlap of the most important KV caches on the right."""
    question = "does an estimator rank KV caches as measured losses do?"
    if table.empty:
        return nothing_to_draw(question.capitalize(), "no losses were measured")
    estimators, evictions = (list(dict.fromkeys(table[name])) for name in ("estimator", "eviction"))
    figure = Figure(figsize=(11.0, 2.0 + 0.5 * len(estimators)), layout="constrained")
    headings(
        figure,
        f"{table['model'].iloc[0]}: {question}",
        "measured: the mean rise of the loss as a KV cache, alone, keeps less",
    )
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, column, label in (
        (left, "spearman", "rank correlation"),
        (right, "top_overlap", "overlap of the most important"),
    ):
        values = table.pivot(index="estimator", columns="eviction", values=column).loc[estimators, evictions]
        grouped_bars(axes, values, legend="eviction policy" if axes is right else None)
        axes.set_xlabel(label)
    return figure
