"""Measured memory and speed of one model: every cell by itself, against the compression ratio."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from baklava.evaluation.records import FULL
from baklava.report.plots.curves import uniform_first
from baklava.report.plots.score_vs_kv_bytes import unit_of
from baklava.report.plots.style import CROWD, FULL_CACHE, Look, headings, looks, method_legend

SECONDS = {"prefill_seconds": "prefill, s", "first_token_seconds": "time to first token, s"}
SPEED = {"tokens_per_second": "decoding, tokens/s"}
BYTES = {"kv_bytes": "KV cache held", "peak_bytes": "peak above the weights"}


def measured(model: str, rows: pd.DataFrame) -> Figure:
    """A panel per quantity, a line per method that starts at the full cache; what no device told is left out."""
    compressed = rows[rows["allocator"] != FULL]
    methods = set(zip(compressed["allocator"], compressed["eviction"], strict=True))
    styles = looks(sorted(methods, key=uniform_first))
    shown = quantities(rows)
    figure = Figure(figsize=(2.9 * len(shown) + 0.3, 3.4 + 0.3 * (len(styles) > CROWD)), layout="constrained")
    headings(figure, f"{model}: measured memory and speed", conditions(rows))
    method_legend(figure, styles.values())
    for axes, (name, (title, scale)) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
        _panel(axes, rows, name, scale, styles)
        axes.set_title(title)
    return figure


def quantities(rows: pd.DataFrame) -> dict[str, tuple[str, float]]:
    """Columns that were measured, each with its title and what its values are divided by."""
    found = {name: (title, 1.0) for name, title in (SECONDS | SPEED).items()}
    for name, title in BYTES.items():
        if rows[name].notna().all():
            unit, size = unit_of(float(rows[name].max()))
            found[name] = (f"{title}, {unit}", float(size))
    return found


def conditions(rows: pd.DataFrame) -> str:
    """What it was measured on, from the first row; all are measured alike."""
    first = rows.iloc[0]
    return f"{first['device']}; context of {first['context']} tokens, batch {first['batch']}; medians"


def _panel(axes: Axes, rows: pd.DataFrame, name: str, scale: float, styles: dict[tuple[str, str], Look]) -> None:
    full = rows.loc[rows["allocator"] == FULL, name].item() / scale
    axes.axhline(full, **FULL_CACHE)
    for (allocator, eviction), look in styles.items():
        own = rows[(rows["allocator"] == allocator) & (rows["eviction"] == eviction)].sort_values("ratio")
        axes.plot([0.0, *own["ratio"]], [full, *(own[name] / scale)], **look.line)
    axes.set_xlim(-0.03, 1.0)
    axes.set_ylim(0, 1.08 * float(rows[name].max()) / scale)
    axes.xaxis.set_major_locator(MultipleLocator(0.2))
    axes.set_xlabel("compression ratio r")
