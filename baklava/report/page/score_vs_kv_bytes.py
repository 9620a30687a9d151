"""Score against the memory that the KV caches take, by model and task."""

from __future__ import annotations

import math

import pandas as pd

from baklava.analysis.headline import Headline
from baklava.report.data.curves import list_curves
from baklava.report.data.ticks import format_tick, log_ticks
from baklava.report.page.curves import draw_curves, score_axis
from baklava.report.page.view import Frame, PageView, make_figure
from baklava.system.units import choose_unit


def show_score_vs_kv_bytes(summary: pd.DataFrame, headline: Headline) -> PageView:
    frames = []
    for model, task, curves in list_curves(summary, headline):
        held = [point.kv_bytes for point in curves.points if point.kv_bytes > 0]
        unit, size = choose_unit(max(held))
        low, high = min(held) / size / 1.15, max(held) / size * 1.15
        ticks = log_ticks(low, high)
        figure = make_figure(
            draw_curves(curves, headline, "kv_bytes", unit=size, across=(low, high)),
            height=440,
            x={
                "title": {"text": f"KV cache per sample ({unit}, logarithmic)"},
                "type": "log",
                "range": [math.log10(low), math.log10(high)],
                "tickvals": ticks,
                "ticktext": [format_tick(tick) for tick in ticks],
            },
            y=score_axis(curves),
        )
        frames.append(Frame((model, task), figure))
    return PageView(
        id="score-vs-kv-bytes",
        title="Score against KV cache memory",
        text="Bytes are those that the caches of one sample really held after compression.",
        controls=("model", "task"),
        frames=tuple(frames),
    )
