"""Budgets of one model: what share of a context every KV cache keeps, at each ratio."""

from __future__ import annotations

from matplotlib.figure import Figure

from baklava.budgets import Budgets
from baklava.evaluation.records import UNIFORM
from baklava.report.plots.heat_map import colour_bar, heat_map, panel_size, panel_title
from baklava.report.plots.style import headings, nothing_to_draw

Method = tuple[str, str]


def budgets(model: str, by_method: dict[Method, list[Budgets]]) -> Figure:
    """A line of panels per method (allocator, eviction), a panel per ratio; all on one colour scale.

    Uniform budgets, the same everywhere, are drawn only where there are no others.
    """
    title = f"{model}: budget of every KV cache"
    shown = {method: some for method, some in by_method.items() if method[0] != UNIFORM} or by_method
    if not shown:
        return nothing_to_draw(title, "this experiment compresses nothing")
    columns = max(len(some) for some in shown.values())
    n_layers, n_kv_heads = next(iter(shown.values()))[0].shape
    width, height = panel_size(n_layers, n_kv_heads)
    size = (max(8.0, (max(width, 1.45) + 0.35) * columns + 1.1), (height + 1.05) * len(shown) + 0.75)
    figure = Figure(figsize=size, layout="constrained")
    method = f"; {' / '.join(next(iter(shown)))}" if len(shown) == 1 else ""
    headings(figure, title, f"share of the context that is kept, in percent{method}")
    axes = figure.subplots(len(shown), columns, squeeze=False, sharey=True)
    for line, (names, some) in zip(axes, shown.items(), strict=True):
        for panel, one in zip(line, some, strict=False):
            mesh = heat_map(panel, 100 * one.shares, low=0, high=100, text=".0f")
            panel_title(panel, f"r = {one.ratio:g}", chosen(one))
            panel.set_xlabel("KV head")
        for unused in line[len(some) :]:
            unused.set_axis_off()
        line[0].set_ylabel("layer" if len(shown) == 1 else f"{' / '.join(names)}\nlayer")
    colour_bar(axes[0], mesh)
    return figure


def chosen(one: Budgets) -> str:
    """What the search chose: the estimator, or the mapping where that has none (uniform)."""
    return str(one.parameters.get("estimator") or one.parameters.get("mapping") or one.allocator)
