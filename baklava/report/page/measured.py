"""Measured memory and speed of every cell by itself, by model and quantity."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from baklava.evaluation.records import FULL
from baklava.report.page.lines import full_cache_line, method_line
from baklava.report.page.view import Frame, PageView, figure, plain
from baklava.report.plots.curves import uniform_first
from baklava.report.plots.measured import conditions, quantities
from baklava.report.plots.style import looks


def measured(by_model: dict[str, pd.DataFrame]) -> PageView:
    return PageView(
        id="measured",
        title="Measured memory and speed",
        text="Every cell by itself, with the device to itself; medians over the repeats.",
        controls=("model", "quantity"),
        frames=tuple(
            Frame((model, title), _figure(rows, name, title, scale), conditions(rows))
            for model, rows in by_model.items()
            for name, (title, scale) in quantities(rows).items()
        ),
    )


def _figure(rows: pd.DataFrame, name: str, title: str, scale: float) -> go.Figure:
    compressed = rows[rows["allocator"] != FULL]
    methods = set(zip(compressed["allocator"], compressed["eviction"], strict=True))
    full = rows.loc[rows["allocator"] == FULL, name].item() / scale
    traces = [full_cache_line((0.0, 1.0), full, f"<b>full cache</b><br>{title}: {full:.4g}")]
    for method, look in looks(sorted(methods, key=uniform_first)).items():
        own = rows[(rows["allocator"] == method[0]) & (rows["eviction"] == method[1])].sort_values("ratio")
        ratios, values = [0.0, *own["ratio"]], [full, *(own[name] / scale)]
        hover = [
            f"<b>{plain(look.label)}</b>, r = {ratio:g}<br>{title}: {value:.4g}"
            for ratio, value in zip(ratios, values, strict=True)
        ]
        traces.append(method_line(look, ratios, values, hover))
    return figure(
        traces,
        height=400,
        x={"title": {"text": "compression ratio r"}, "range": [-0.02, 1.0]},
        y={"title": {"text": title}, "rangemode": "tozero"},
    )
