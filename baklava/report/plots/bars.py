"""Horizontal bars in groups: a group per row of a table, a bar per column."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from baklava.report.plots.style import HONEY, INK


def grouped_bars(axes: Axes, table: pd.DataFrame, *, legend: str | None) -> None:
    """Draw the table, its first row at the top; `legend` is the title of the key to the columns, None for no key."""
    colours = matplotlib.colormaps[HONEY](np.linspace(0.35, 0.85, len(table.columns)))
    thickness = 0.8 / len(table.columns)
    places = np.arange(len(table))
    for i, (column, colour) in enumerate(zip(table.columns, colours, strict=True)):
        offset = (i - (len(table.columns) - 1) / 2) * thickness
        axes.barh(places + offset, table[column], height=thickness, color=colour, label=str(column))
    axes.set_yticks(places, table.index)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.grid(axis="y", visible=False)
    if legend is not None:
        axes.legend(title=legend, alignment="left", loc="upper left", bbox_to_anchor=(1.0, 1.0))
