"""Budgets that grew: their loss at every ratio, beside that of uniform ones."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from baklava.allocation.fitted import CAPPED, GROWN
from baklava.evaluation.record_schema import UNIFORM
from baklava.report.data.looks import assign_looks
from baklava.report.plots.style import add_headings


def draw_growth(trace: pd.DataFrame) -> Figure:
    """Draw losses on the prompts that growth looked at (lines) and on those that it held back (dashed)."""
    [(model, allocator, eviction)] = trace[["model", "allocator", "eviction"]].drop_duplicates().to_numpy().tolist()
    looks = assign_looks([(UNIFORM, eviction), (allocator, eviction)])
    figure = Figure(figsize=(7.2, 4.3), layout="constrained")
    subtitle = "divergence or loss per token of the calibration prompts' continuations; dashed: prompts held back"
    add_headings(figure, f"{model}: growth of {allocator} / {eviction}", subtitle)
    axes = figure.subplots()
    for move, name in ((UNIFORM, UNIFORM), (GROWN, allocator)):
        rows = trace[trace["move"].isin((move, move + CAPPED))].sort_values("ratio")
        colour = looks[name, eviction].colour
        axes.plot(rows["ratio"], rows["loss"], "o-", color=colour, label=name)
        axes.plot(rows["ratio"], rows["held_back"], "o--", color=colour, markerfacecolor="none")
    axes.set_yscale("log")
    axes.set_xlabel("compression ratio r")
    axes.set_ylabel("loss (nats per token)")
    axes.legend()
    return figure


def is_growth(trace: pd.DataFrame) -> bool:
    return bool(trace["move"].isin((GROWN, GROWN + CAPPED)).any())
