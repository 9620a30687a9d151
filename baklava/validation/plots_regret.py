"""Regret of one model's estimators: loss in their order less the loss of the best budgets, per eviction policy."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from baklava.report.plots.bars import grouped_bars
from baklava.report.plots.style import headings, nothing_to_draw


def regret(table: pd.DataFrame) -> Figure:
    """A panel per eviction policy, a group of bars per estimator, a bar per ratio."""
    question = "what does it cost to follow an estimator's ranking?"
    if table.empty:
        return nothing_to_draw(question.capitalize(), "this experiment compresses nothing")
    estimators, evictions = (list(dict.fromkeys(table[name])) for name in ("estimator", "eviction"))
    figure = Figure(figsize=(3.5 + 3.2 * len(evictions), 2.2 + 0.5 * len(estimators)), layout="constrained")
    headings(
        figure,
        f"{table['model'].iloc[0]}: {question}",
        "KV caches made whole in its order, against the best budgets of the experiment at the same ratio",
    )
    panels = figure.subplots(1, len(evictions), sharey=True, squeeze=False)[0]
    for axes, eviction in zip(panels, evictions, strict=True):
        some = table[table["eviction"] == eviction]
        values = some.pivot(index="estimator", columns="ratio", values="regret").loc[estimators]
        values.columns = pd.Index([f"r = {ratio:g}" for ratio in values.columns])
        grouped_bars(axes, values, legend="" if axes is panels[-1] else None)
        axes.set_title(eviction)
        axes.set_xlabel("regret (nats per token)")
    return figure
