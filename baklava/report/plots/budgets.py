"""Budgets of one model: what share of a context every KV cache keeps, at each ratio."""

from __future__ import annotations

from matplotlib.figure import Figure

from baklava.budgets import Budgets
from baklava.evaluation.record_schema import UNIFORM
from baklava.report.data.budgets import describe
from baklava.report.data.looks import Method
from baklava.report.plots.heat_map import add_colour_bar, draw_heat_map, panel_size, set_panel_title
from baklava.report.plots.style import add_headings, draw_nothing


def draw_budgets(model: str, by_method: dict[Method, list[Budgets]]) -> Figure:
    """Draw a line of panels per method, a panel per ratio; all on one colour scale.

    Uniform budgets, the same everywhere, are drawn only where there are no others.
    """
    title = f"{model}: budget of every KV cache"
    shown = {method: budgets for method, budgets in by_method.items() if method[0] != UNIFORM} or by_method
    if not shown:
        return draw_nothing(title, "this experiment compresses nothing")
    columns = max(len(by_ratio) for by_ratio in shown.values())
    n_layers, n_kv_heads = next(iter(shown.values()))[0].shape
    width, height = panel_size(n_layers, n_kv_heads)
    size = (max(8.0, (max(width, 1.45) + 0.35) * columns + 1.1), (height + 1.05) * len(shown) + 0.75)
    figure = Figure(figsize=size, layout="constrained")
    method = f"; {' / '.join(next(iter(shown)))}" if len(shown) == 1 else ""
    quantised = any(budgets.bits is not None for by_ratio in shown.values() for budgets in by_ratio)
    bits = "; bits of keys / values, on average" if quantised else ""
    add_headings(figure, title, f"share of the context that is kept, in percent{bits}{method}")
    axes = figure.subplots(len(shown), columns, squeeze=False, sharey=True)
    for line, (names, by_ratio) in zip(axes, shown.items(), strict=True):
        for panel, budgets in zip(line, by_ratio, strict=False):
            mesh = draw_heat_map(panel, 100 * budgets.shares, low=0, high=100, text=".0f")
            set_panel_title(panel, f"r = {budgets.ratio:g}", describe(budgets))
            panel.set_xlabel("KV head")
        for unused in line[len(by_ratio) :]:
            unused.set_axis_off()
        line[0].set_ylabel("layer" if len(shown) == 1 else f"{' / '.join(names)}\nlayer")
    add_colour_bar(axes[0], mesh)
    return figure
