"""Score against the memory that the KV caches take, by model and task."""

from __future__ import annotations

import math

import pandas as pd

from baklava.analysis.headline import Headline
from baklava.report.page.curves import curves, score_axis, traces
from baklava.report.page.view import Frame, PageView, figure
from baklava.report.plots.score_vs_kv_bytes import unit_of


def score_vs_kv_bytes(summary: pd.DataFrame, headline: Headline) -> PageView:
    frames = []
    for model, task, points in curves(summary, headline):
        held = [point.kv_bytes for some in points.values() for point in some if point.kv_bytes > 0]
        unit, size = unit_of(max(held))
        low, high = min(held) / size / 1.15, max(held) / size * 1.15
        drawn = figure(
            traces(points, headline, "kv_bytes", unit=size, across=(low, high)),
            height=440,
            x={
                "title": {"text": f"KV cache per sample ({unit}, logarithmic)"},
                "type": "log",
                "range": [math.log10(low), math.log10(high)],
                "dtick": "D2",
            },
            y=score_axis(points),
        )
        frames.append(Frame((model, task), drawn))
    return PageView(
        id="score-vs-kv-bytes",
        title="Score against KV cache memory",
        text="Bytes are those that the caches of one sample really held after compression.",
        controls=("model", "task"),
        frames=tuple(frames),
    )
