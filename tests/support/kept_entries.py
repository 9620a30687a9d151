"""A naive computation of the entries that a budgeted cache must keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from baklava import Budgets
from baklava.cache.projections import find_paths
from baklava.eviction import EvictionPolicy
from baklava.eviction.base import LayerContext, raise_protected


def uniform(ratio: float, *, n_layers: int = 2, n_kv_heads: int = 2) -> Budgets:
    return Budgets.uniform(n_layers=n_layers, n_kv_heads=n_kv_heads, ratio=ratio)


def kept_by(
    policy: EvictionPolicy, model: PreTrainedModel, context: Tensor, budgets: Budgets, *, rotated_for: int | None = None
) -> Tensor:
    """Compute naively `[L, Hkv, n_context]`: the best entries of one complete pass, per layer and head."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def observer(module: Any, query: Tensor, key: Tensor, value: Tensor, output: Tensor, **_: Any) -> None:
        seen.append((query, key, value))

    with torch.inference_mode():
        model(context, use_cache=False, observer=observer)
    own = torch.from_numpy(budgets.entries(context.shape[1]))
    paths = find_paths(model, [policy]) or {}
    views = [
        LayerContext(key, value, key.shape[-1] ** -0.5, None, layer, model.config, rotated_for, paths.get(layer))
        for layer, (_, key, value) in enumerate(seen)
    ]
    scored = [
        policy.score_and_order(view, policy.observe(None, query, view))
        for view, (query, _, _) in zip(views, seen, strict=True)
    ]
    scores, orders = zip(*((layer[0], order[0]) for layer, order in scored), strict=True)
    counts = policy.distribute_over_layers(scores, orders, own)
    kept = torch.zeros(*budgets.shape, context.shape[1], dtype=torch.bool)
    for layer, (scores_of_layer, order) in enumerate(scored):
        for head, n in enumerate(policy.distribute(scores_of_layer, order, counts[layer][None])[0].tolist()):
            ranked = order[0, head]
            if policy.ranks_by_bids:
                ranked = policy.bids(scores_of_layer[0, head], ranked, int(own[layer, head]))
            best = raise_protected(ranked, policy, n).argsort(descending=True, stable=True)
            kept[layer, head, best[:n]] = True
    return kept
