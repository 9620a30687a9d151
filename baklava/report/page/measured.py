"""Measured memory and speed of every cell by itself, by model and quantity."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from baklava.report.data.looks import assign_looks
from baklava.report.data.measured import MeasuredQuantity, describe_conditions, list_quantities
from baklava.report.page.lines import draw_full_cache_line, draw_method_line
from baklava.report.page.view import Frame, PageView, escape, make_figure


def show_measured(by_model: dict[str, pd.DataFrame]) -> PageView:
    return PageView(
        id="measured",
        title="Measured memory and speed",
        text="Every cell by itself, with the device to itself; medians over the repeats.",
        controls=("model", "quantity"),
        frames=tuple(
            Frame((model, quantity.title), _draw(quantity), describe_conditions(rows))
            for model, rows in by_model.items()
            for quantity in list_quantities(rows)
        ),
    )


def _draw(quantity: MeasuredQuantity) -> go.Figure:
    title, full = quantity.title, quantity.full
    traces = [draw_full_cache_line((0.0, 1.0), full, f"<b>full cache</b><br>{title}: {full:.4g}")]
    for method, look in assign_looks(list(quantity.by_method)).items():
        ratios, values = quantity.by_method[method]
        hovers = [
            f"<b>{escape(look.label)}</b>, r = {ratio:g}<br>{title}: {value:.4g}"
            for ratio, value in zip(ratios, values, strict=True)
        ]
        traces.append(draw_method_line(look, ratios, values, hovers))
    return make_figure(
        traces,
        height=400,
        x={"title": {"text": "compression ratio r"}, "range": [-0.02, 1.0]},
        y={"title": {"text": title}, "rangemode": "tozero"},
    )
