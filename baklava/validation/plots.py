"""The figures of one model's validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from baklava.experiment.jobs import ValidateJob
from baklava.report.data.looks import HONEY, INK
from baklava.report.plots.heat_map import add_colour_bar, draw_heat_map, set_panel_title
from baklava.report.plots.style import add_headings, draw_nothing, save, styled
from baklava.system.parquet import read_parquet
from baklava.validation import consistency, policies, ranking, regret


def draw_validation(job: ValidateJob) -> None:
    """Draw every figure as SVG and PNG beside the file that it shows."""
    figures = (
        (job.consistency, consistency.COLUMNS, consistency.SCHEMA, draw_consistency),
        (job.ranking, ranking.COLUMNS, ranking.SCHEMA, draw_ranking),
        (job.policies, policies.COLUMNS, policies.SCHEMA, draw_policies),
        (job.regret, regret.COLUMNS, regret.SCHEMA, draw_regret),
    )
    with styled():
        for path, columns, schema, draw in figures:
            table = read_parquet(path, columns, schema=schema, what=path.stem, hint="`baklava validate`").to_pandas()
            save(draw(table), path.parent, path.stem)


def draw_consistency(table: pd.DataFrame) -> Figure:
    """Draw rank correlation on the left, overlap of the most important KV caches on the right.

    Each has a row per estimator and a column per comparison.
    """
    comparisons = list(dict.fromkeys(zip(table["between"], table["pair"], strict=True)))
    estimators = _unique(table["estimator"])
    figure = Figure(figsize=(12.5, 2.9 + 0.32 * len(estimators)), layout="constrained")
    add_headings(
        figure,
        f"{table['model'].iloc[0]}: would another profile rank the KV caches alike?",
        f"at least {table['n_prompts'].min()} prompts for each; a control that looks at nothing agrees with itself",
    )

    def values_of(column: str) -> pd.DataFrame:
        values = table.pivot(index="estimator", columns=["between", "pair"], values=column)
        return values.loc[estimators, comparisons]

    _draw_agreement(figure, values_of, [pair or between for between, pair in comparisons])
    return figure


def draw_ranking(table: pd.DataFrame) -> Figure:
    """Draw each estimator's agreement with measured importance, for every eviction policy.

    Rank correlation is on the left, overlap of the most important KV caches on the right.
    """
    question = "does an estimator rank KV caches as measured losses do?"
    if table.empty:
        return draw_nothing(question.capitalize(), "no losses were measured")
    estimators, evictions = _unique(table["estimator"]), _unique(table["eviction"])
    figure = Figure(figsize=(11.0, 2.0 + 0.5 * len(estimators)), layout="constrained")
    add_headings(
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
        _draw_bars(axes, values, legend="eviction policy" if axes is right else None)
        axes.set_xlabel(label)
    return figure


def draw_policies(table: pd.DataFrame) -> Figure:
    """Draw the agreement of every two eviction policies: a row per allocator and ratio, a column per pair."""
    question = "do eviction policies rank the KV caches alike?"
    if table.empty:
        return draw_nothing(question.capitalize(), "this experiment has one eviction policy, or uniform budgets alone")
    rankings, pairs = _unique(table["ranking"]), _unique(table["pair"])
    figure = Figure(figsize=(6.0 + 1.6 * len(pairs), 2.9 + 0.32 * len(rankings)), layout="constrained")
    add_headings(
        figure,
        f"{table['model'].iloc[0]}: {question}",
        "where they do not, budgets belong to the policy that they were made for",
    )

    def values_of(column: str) -> pd.DataFrame:
        return table.pivot(index="ranking", columns="pair", values=column).loc[rankings].reindex(columns=pairs)

    _draw_agreement(figure, values_of, pairs)
    return figure


def draw_regret(table: pd.DataFrame) -> Figure:
    """Draw the loss in each estimator's order less the loss of the best budgets.

    There is a panel per eviction policy, in it a group of bars per estimator, a bar per ratio.
    """
    question = "what does it cost to follow an estimator's ranking?"
    if table.empty:
        return draw_nothing(question.capitalize(), "this experiment compresses nothing")
    estimators, evictions = _unique(table["estimator"]), _unique(table["eviction"])
    figure = Figure(figsize=(3.5 + 3.2 * len(evictions), 2.2 + 0.5 * len(estimators)), layout="constrained")
    add_headings(
        figure,
        f"{table['model'].iloc[0]}: {question}",
        "KV caches made whole in its order, against the best budgets of the experiment at the same ratio",
    )
    panels = figure.subplots(1, len(evictions), sharey=True, squeeze=False)[0]
    for axes, eviction in zip(panels, evictions, strict=True):
        rows = table[table["eviction"] == eviction]
        values = rows.pivot(index="estimator", columns="ratio", values="regret").loc[estimators]
        values.columns = pd.Index([f"r = {ratio:g}" for ratio in values.columns])
        _draw_bars(axes, values, legend="" if axes is panels[-1] else None)
        axes.set_title(eviction)
        axes.set_xlabel("regret (nats per token)")
    return figure


def _unique(column: pd.Series) -> list[Any]:
    return list(dict.fromkeys(column))


def _draw_agreement(figure: Figure, values_of: Callable[[str], pd.DataFrame], labels: list[str]) -> None:
    """Draw rank correlation on the left and overlap on the right, with a label per column of their values."""
    left, right = figure.subplots(1, 2)
    for axes, column, title in ((left, "spearman", "rank correlation"), (right, "top_overlap", "overlap of the top")):
        values = values_of(column)
        mesh = draw_heat_map(axes, values.to_numpy(), low=0.0, high=1.0, text=".2f")
        set_panel_title(axes, title, "negative drawn as 0" if column == "spearman" else "")
        _label_cells(axes, labels, list(values.index))
        add_colour_bar(axes, mesh)
    right.set_yticklabels([])


def _draw_bars(axes: Axes, table: pd.DataFrame, *, legend: str | None) -> None:
    """Draw horizontal bars: a group per row of the table, the first at the top, and in it a bar per column.

    `legend` is the title of the legend of the columns, None for no legend.
    """
    colours = matplotlib.colormaps[HONEY](np.linspace(0.35, 0.85, len(table.columns)))
    thickness = 0.8 / len(table.columns)
    centres = np.arange(len(table))
    for i, (column, colour) in enumerate(zip(table.columns, colours, strict=True)):
        offset = (i - (len(table.columns) - 1) / 2) * thickness
        axes.barh(centres + offset, table[column], height=thickness, color=colour, label=str(column))
    axes.set_yticks(centres, table.index)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.grid(axis="y", visible=False)
    if legend is not None:
        axes.legend(title=legend, alignment="left", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _label_cells(axes: Axes, columns: list[str], rows: list[str]) -> None:
    for axis, names in ((axes.xaxis, columns), (axes.yaxis, rows)):
        axis.set_major_locator(FixedLocator([i + 0.5 for i in range(len(names))]))
        axis.set_major_formatter(FixedFormatter(names))
    axes.tick_params(axis="x", rotation=35)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")
