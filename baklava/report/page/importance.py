"""Importance of every KV cache, by model and estimator."""

from __future__ import annotations

import math

from baklava.importance.profile import Profile
from baklava.report.data.importance import LAYERS, ImportanceMap, describe_prompts, map_importance
from baklava.report.page.heat_map import draw_heat_map
from baklava.report.page.view import Frame, PageView


def show_importance(profiles: dict[str, Profile]) -> PageView:
    return PageView(
        id="importance",
        title="Importance of every KV cache",
        text="Each estimator has a scale of its own; query heads that share a KV cache are averaged. "
        f"{LAYERS} has one value per layer.",
        controls=("model", "estimator"),
        frames=tuple(
            _frame(model, kv_map, describe_prompts(profile), of_layers=kv_map.estimator == LAYERS)
            for model, profile in profiles.items()
            for kv_map in map_importance(profile)
        ),
        narrow=True,
    )


def _frame(model: str, kv_map: ImportanceMap, prompts: str, *, of_layers: bool) -> Frame:
    values = kv_map.values
    n_layers, n_columns = values.shape

    def hover(i: int, j: int) -> str:
        return f"layer {i}{'' if of_layers else f', KV head {j}'}<br>importance {values[i, j]:.4g}"

    figure = draw_heat_map(
        values,
        low=float(values.min()),
        high=float(values.max()),
        text=kv_map.number,
        hover=hover,
        x=("", [""]) if of_layers else ("KV head", [str(j) for j in range(n_columns)]),
        y=("layer", [str(i) for i in range(n_layers)]),
    )
    agreement = kv_map.agreement
    note = prompts if math.isnan(agreement) else f"{prompts}; rank agreement between prompts {agreement:.2f}"
    return Frame((model, kv_map.estimator), figure, note)
