"""Budget of every KV cache, by model and method, with a slider over the ratios."""

from __future__ import annotations

import plotly.graph_objects as go

from baklava.budgets import Budgets
from baklava.report.data.budgets import describe, name_bits
from baklava.report.data.looks import Method, uniform_last
from baklava.report.page.heat_map import draw_heat_map
from baklava.report.page.view import Frame, PageView

LOSSES = {"these budgets": "loss", "uniform": "loss_uniform", "full cache": "loss_full"}


def show_budgets(by_model: dict[str, dict[Method, list[Budgets]]]) -> PageView:
    return PageView(
        id="budgets",
        title="Budget of every KV cache",
        text="The share of the context that is kept, in percent; the mean over all KV caches is 100 (1 - r). "
        "Where entries are quantised, r counts bytes, and pointing at a KV cache shows its bits.",
        controls=("model", "method", "ratio"),
        frames=tuple(
            Frame((model, " / ".join(method), f"{budgets.ratio:g}"), _draw(budgets), _note(budgets))
            for model, by_method in by_model.items()
            for method in uniform_last(by_method)
            for budgets in by_method[method]
        ),
        slider="ratio",
        narrow=True,
    )


def _draw(budgets: Budgets) -> go.Figure:
    percent = 100 * budgets.shares
    n_layers, n_kv_heads = budgets.shape

    def hover(layer: int, head: int) -> str:
        said = f"layer {layer}, KV head {head}<br>keeps {percent[layer, head]:.1f}% of the context"
        return said if budgets.bits is None else f"{said}<br>in {name_bits(*budgets.bits[layer, head])} bits"

    return draw_heat_map(
        percent,
        low=0,
        high=100,
        text=".0f",
        hover=hover,
        x=("KV head", [str(j) for j in range(n_kv_heads)]),
        y=("layer", [str(i) for i in range(n_layers)]),
    )


def _note(budgets: Budgets) -> str:
    """What the search chose and how well it did on the calibration continuations, where there was a search."""
    losses = {name: budgets.provenance.get(key) for name, key in LOSSES.items()}
    known = [f"{name} {value:.3f}" for name, value in losses.items() if isinstance(value, float)]
    return describe(budgets) + (f"; loss on the calibration prompts: {', '.join(known)}" if known else "")
