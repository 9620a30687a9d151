"""Measured memory and speed of one model: every cell by itself, against the compression ratio."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from baklava.report.data.looks import MAX_UNCROWDED, Look, Method, assign_looks
from baklava.report.data.measured import MeasuredQuantity, describe_conditions, list_quantities
from baklava.report.plots.style import FULL_CACHE, add_headings, add_method_legend, line_style


def draw_measured(model: str, rows: pd.DataFrame) -> Figure:
    """Draw a panel per quantity, a line per method that starts at the full cache."""
    quantities = list_quantities(rows)
    looks = assign_looks(list(quantities[0].by_method))
    crowded = len(looks) > MAX_UNCROWDED
    figure = Figure(figsize=(2.9 * len(quantities) + 0.3, 3.4 + 0.3 * crowded), layout="constrained")
    add_headings(figure, f"{model}: measured memory and speed", describe_conditions(rows))
    add_method_legend(figure, looks.values())
    for axes, quantity in zip(figure.subplots(1, len(quantities), squeeze=False)[0], quantities, strict=True):
        _draw_panel(axes, quantity, looks)
    return figure


def _draw_panel(axes: Axes, quantity: MeasuredQuantity, looks: dict[Method, Look]) -> None:
    axes.axhline(quantity.full, **FULL_CACHE)
    for method, (ratios, values) in quantity.by_method.items():
        axes.plot(ratios, values, **line_style(looks[method]))
    axes.set_xlim(-0.03, 1.0)
    axes.set_ylim(0, 1.08 * quantity.largest)
    axes.xaxis.set_major_locator(MultipleLocator(0.2))
    axes.set_xlabel("compression ratio r")
    axes.set_title(quantity.title)
