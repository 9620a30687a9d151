"""Importance of every KV cache, by model and estimator."""

from __future__ import annotations

import math
from collections import Counter

from baklava.budgets import Budgets
from baklava.importance.profile import Profile
from baklava.report.data.budgets import find_choice
from baklava.report.data.importance import LAYERS, ImportanceMap, describe_prompts, map_importance
from baklava.report.data.looks import Method
from baklava.report.page.heat_map import draw_heat_map
from baklava.report.page.view import Frame, PageView


def show_importance(profiles: dict[str, Profile], budgets: dict[str, dict[Method, list[Budgets]]]) -> PageView:
    """Show every estimator; each model begins with the one that most of its budgets follow."""
    return PageView(
        id="importance",
        title="Importance of every KV cache",
        text="Each estimator has a scale of its own; query heads that share a KV cache are averaged. "
        f"{LAYERS} has one value per layer.",
        controls=("model", "estimator"),
        frames=tuple(
            _frame(model, kv_map, describe_prompts(profile), of_layers=kv_map.estimator == LAYERS)
            for model, profile in profiles.items()
            for kv_map in _chosen_first(map_importance(profile), budgets.get(model, {}))
        ),
        narrow=True,
    )


def _chosen_first(maps: list[ImportanceMap], by_method: dict[Method, list[Budgets]]) -> list[ImportanceMap]:
    chosen = Counter(find_choice(budgets) for by_ratio in by_method.values() for budgets in by_ratio)
    return sorted(maps, key=lambda kv_map: -chosen[kv_map.estimator])


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
