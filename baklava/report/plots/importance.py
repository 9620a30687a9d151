"""Importance of every KV cache of one model: a panel per estimator, and the layers' own importance."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from baklava.analysis.agreement import rank_agreement
from baklava.importance import ESTIMATORS
from baklava.importance.profile import Profile
from baklava.report.plots.heat_map import colour_bar, heat_map, panel_size, panel_title
from baklava.report.plots.style import headings

LAYERS = "layer_cosine"  # the estimator that has one value per layer, which every profile holds anyway


def importance(profile: Profile) -> Figure:
    """Query heads are pooled by their mean over each KV head's group; every panel has its own colour scale."""
    maps, of_layers = maps_of(profile), profile.layer_importance.mean(0).astype(np.float64)[:, None]
    width, height = panel_size(profile.n_layers, profile.n_kv_heads)
    room = 1.25  # for axis labels and the colour bar
    widths = [max(width, 1.9) + room] * len(maps) + [0.2 + room]
    figure = Figure(figsize=(max(8.0, sum(widths)), height + 1.75), layout="constrained")
    n_prompts = profile.layer_importance.shape[0]
    headings(
        figure,
        f"{profile.model}: importance of every KV cache",
        f"mean over {n_prompts} prompts" if n_prompts > 1 else "one prompt",
    )
    *panels, last = figure.subplots(1, len(maps) + 1, width_ratios=widths, squeeze=False)[0]
    for panel, (name, values) in zip(panels, maps.items(), strict=True):
        agreement = rank_agreement(profile.kv_importance_of_prompts(name))
        note = "" if math.isnan(agreement) else f"rank agreement between prompts {agreement:.2f}"
        _panel(panel, name, note, values)
        panel.set_xlabel("KV head")
    _panel(last, LAYERS, "", of_layers)
    last.set_xticks([])
    [*panels, last][0].set_ylabel("layer")
    return figure


def maps_of(profile: Profile) -> dict[str, NDArray[np.float64]]:
    """Importance `[L, Hkv]` by estimator, those that are known first, without that of whole layers."""
    known = [name for name in ESTIMATORS if name in profile.head_importance]
    names = dict.fromkeys([*known, *profile.head_importance])
    return {name: profile.kv_importance(name) for name in names if name != LAYERS}


def _panel(axes: Axes, title: str, note: str, values: NDArray[np.float64]) -> None:
    mesh = heat_map(axes, values, low=float(values.min()), high=float(values.max()), text=precision(values))
    panel_title(axes, title, note)
    colour_bar(axes, mesh)


def precision(values: NDArray[np.float64]) -> str:
    """A format with two or three digits for the largest value."""
    largest = max(float(np.abs(values).max()), 1e-4)
    return f".{max(0, 1 - math.floor(math.log10(largest)) + (largest >= 1))}f"
