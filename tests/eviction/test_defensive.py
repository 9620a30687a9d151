"""DefensiveKV ranks by the largest attention of any query, after the entries that have most of the mean attention."""

from __future__ import annotations

import pytest
import torch
from layer_contexts import N_KV_HEADS, kept, naive_attention, random_layer, scores_of
from torch import Tensor

from baklava.eviction import Defensive
from baklava.eviction.base import LayerContext
from baklava.eviction.written import written_lengths


def naive(queries: Tensor, context: LayerContext, policy: Defensive) -> list[list[int]]:
    """The order in which each KV head of one row evicts last, window first; query by query and entry by entry."""
    window, half = policy.window_size, policy.kernel_size // 2
    weights = naive_attention(queries, context)[0, :, -window:, :-window]  # [Hq, W, n]
    n = weights.shape[-1]
    pooled = torch.zeros_like(weights)
    for entry in range(n):
        pooled[..., entry] = weights[..., max(0, entry - half) : entry + half + 1].sum(-1) / policy.kernel_size
    pooled *= (weights.sum(-1) / pooled.sum(-1))[..., None]
    lengths = written_lengths(context)[0, :, :n]
    orders = []
    for head in range(N_KV_HEADS):
        group = slice(2 * head, 2 * head + 2)
        risk = pooled[group].flatten(0, 1).max(0).values
        risk = risk.clamp(min=float(risk.mean()))
        score = risk * lengths[head] / lengths.sum(0)
        mean = weights[group].mean((0, 1))
        first: list[int] = []
        for entry in mean.argsort(descending=True).tolist():
            if float(mean[[*first, entry]].sum()) >= policy.mass * float(mean.sum()):
                break
            first.append(entry)
        others = [entry for entry in score.argsort(descending=True).tolist() if entry not in first]
        orders.append([*reversed(range(n, n + window)), *first, *others])
    return orders


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("window", "kernel", "mass"), [(1, 1, 0.9), (4, 5, 0.5), (8, 3, 0.0), (32, 5, 1.0)])
def test_the_order_is_the_naive_one(window: int, kernel: int, mass: float, softcap: float | None) -> None:
    queries, context = random_layer(60, softcap=softcap)
    policy = Defensive(window_size=window, kernel_size=kernel, mass=mass)
    scores = scores_of(policy, queries, context, chunks=[30, 29, 1])
    for head, order in enumerate(naive(queries, context, policy)):
        for budget in (1, 5, 20, 45, 59):
            assert kept(policy, scores[0, head], budget).tolist() == sorted(order[:budget])


def test_one_query_is_enough() -> None:
    """An entry that a single query of the window looks at outranks one that all look at a little."""
    queries, context = random_layer(60)
    queries, keys = queries * 0, context.keys.zero_()
    keys[:, :, 10, 0] = 8.0
    keys[:, :, 20, 1] = 1.0
    queries[..., 1] = 1.0
    queries[:, :, 50, 0], queries[:, :, 50, 1] = 8.0, 0.0
    context.values[:] = 1.0
    policy = Defensive(window_size=16, kernel_size=1, mass=0.0)
    scores = scores_of(policy, queries, context)
    assert bool((scores[..., 10] > scores[..., 20]).all())
    assert scores[0, 0, 11] == scores[0, 0, 40]  # looked at by none more than by others: the mean risk


def test_a_context_no_longer_than_the_window_is_kept_from_its_end() -> None:
    policy = Defensive(window_size=8)
    scores = scores_of(policy, *random_layer(8))
    assert kept(policy, scores[0, 0], 3).tolist() == [5, 6, 7]
