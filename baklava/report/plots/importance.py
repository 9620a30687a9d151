"""Importance of every KV cache of one model: a panel per estimator, and the layers' own importance."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from baklava.importance.profile import Profile
from baklava.report.data.importance import ImportanceMap, describe_prompts, map_importance
from baklava.report.plots.heat_map import add_colour_bar, draw_heat_map, panel_size, set_panel_title
from baklava.report.plots.style import add_headings


def draw_importance(profile: Profile) -> Figure:
    """Draw every map on a colour scale of its own."""
    *maps, of_layers = map_importance(profile)
    width, height = panel_size(profile.n_layers, profile.n_kv_heads)
    room = 1.25  # for axis labels and the colour bar
    widths = [max(width, 1.9) + room] * len(maps) + [0.2 + room]
    figure = Figure(figsize=(max(8.0, sum(widths)), height + 1.75), layout="constrained")
    add_headings(figure, f"{profile.model}: importance of every KV cache", describe_prompts(profile))
    *panels, last = figure.subplots(1, len(maps) + 1, width_ratios=widths, squeeze=False)[0]
    for panel, kv_map in zip(panels, maps, strict=True):
        agreement = kv_map.agreement
        _draw_panel(panel, kv_map, "" if math.isnan(agreement) else f"rank agreement between prompts {agreement:.2f}")
        panel.set_xlabel("KV head")
    _draw_panel(last, of_layers, "")
    last.set_xticks([])
    [*panels, last][0].set_ylabel("layer")
    return figure


def _draw_panel(axes: Axes, kv_map: ImportanceMap, note: str) -> None:
    values = kv_map.values
    mesh = draw_heat_map(axes, values, low=float(values.min()), high=float(values.max()), text=kv_map.number)
    set_panel_title(axes, kv_map.estimator, note)
    add_colour_bar(axes, mesh)
