"""Importance of every KV cache, by model and estimator."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from baklava.analysis.agreement import rank_agreement
from baklava.importance.profile import Profile
from baklava.report.page.heat_map import heat_map
from baklava.report.page.view import Frame, PageView
from baklava.report.plots.importance import LAYERS, maps_of, precision


def importance(profiles: dict[str, Profile]) -> PageView:
    return PageView(
        id="importance",
        title="Importance of every KV cache",
        text="Each estimator has a scale of its own; query heads that share a KV cache are averaged. "
        f"{LAYERS} has one value per layer.",
        controls=("model", "estimator"),
        frames=tuple(frame for model, profile in profiles.items() for frame in _frames(model, profile)),
        narrow=True,
    )


def _frames(model: str, profile: Profile) -> list[Frame]:
    heads = [str(j) for j in range(profile.n_kv_heads)]
    frames = [
        _frame(model, name, values, profile.kv_importance_of_prompts(name), heads)
        for name, values in maps_of(profile).items()
    ]
    of_layers = profile.layer_importance.astype(np.float64)[:, :, None]  # [P, L, 1]
    return [*frames, _frame(model, LAYERS, of_layers.mean(0), of_layers, [""])]


def _frame(model: str, name: str, values: NDArray, of_prompts: NDArray, columns: list[str]) -> Frame:
    def hover(i: int, j: int) -> str:
        return f"layer {i}{f', KV head {j}' if columns[j] else ''}<br>importance {values[i, j]:.4g}"

    drawn = heat_map(
        values,
        low=float(values.min()),
        high=float(values.max()),
        text=precision(values),
        hover=hover,
        x=("KV head" if columns[0] else "", columns),
        y=("layer", [str(i) for i in range(len(values))]),
    )
    agreement = rank_agreement(of_prompts)
    said = f"mean over {len(of_prompts)} prompts" if len(of_prompts) > 1 else "one prompt"
    note = said if math.isnan(agreement) else f"{said}; rank agreement between prompts {agreement:.2f}"
    return Frame((model, name), drawn, note)
