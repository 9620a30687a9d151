"""Score against compression ratio, by model and task."""

from __future__ import annotations

import pandas as pd

from baklava.analysis.headline import Headline
from baklava.report.data.curves import list_curves
from baklava.report.page.curves import draw_curves, score_axis
from baklava.report.page.view import Frame, PageView, make_figure


def show_score_vs_ratio(summary: pd.DataFrame, headline: Headline) -> PageView:
    frames = tuple(
        Frame(
            at=(model, task),
            figure=make_figure(
                draw_curves(curves, headline, "ratio", across=(0.0, 1.0)),
                height=440,
                x={
                    "title": {"text": "compression ratio r: part of the KV entries (with bits: bytes) that is removed"},
                    "range": [-0.02, 1.0],
                },
                y=score_axis(curves),
            ),
        )
        for model, task, curves in list_curves(summary, headline)
    )
    return PageView(
        id="score-vs-ratio",
        title="Score against compression ratio",
        text=f"Bands are {100 * headline.confidence:g}% bootstrap intervals. Click a method in the legend to hide it, "
        "double-click to see it alone.",
        controls=("model", "task"),
        frames=frames,
    )
