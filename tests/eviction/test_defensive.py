"""DefensiveKV ranks by the largest attention of any query, after the entries that have most of the mean attention."""

from __future__ import annotations

import pytest
import torch
from competition import naive_winners
from layer_contexts import N_KV_HEADS, kept, naive_attention, order_of, random_layer, scores_and_order_of, scores_of
from torch import Tensor

from baklava.eviction import AdaKV, Defensive, LayerAda
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
    scores = order_of(policy, queries, context, chunks=[30, 29, 1])
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


@pytest.mark.parametrize("budgets", [[20] * 6, [60, 3, 0, 4, 30, 9]])
def test_first_parts_compete_above_their_layer_as_far_as_their_own_budget_goes(budgets: list[int]) -> None:
    window = 4
    inner = Defensive(window_size=window, mass=0.8)
    layers = [scores_and_order_of(inner, *random_layer(60, seed=seed)) for seed in range(2)]
    bids = []
    for scores, order in layers:
        for head in range(N_KV_HEADS):
            first = [entry for entry in range(60) if order[0, head, entry] > scores[0].max()]
            assert len(first) > 9
            first.sort(key=lambda entry: -float(order[0, head, entry]))
            bid = scores[0, head].clone()
            for entry in first[: max(0, budgets[len(bids)] - window)]:
                bid[entry] = order[0, head, entry]
            bids.append(bid)
    expected = naive_winners(torch.stack(bids), budgets, inner, 0.0)
    scores, orders = ([layer[part][0] for layer in layers] for part in range(2))
    own = torch.tensor(budgets).view(2, 3)
    counts = LayerAda(inner=inner, floor=0.0).distribute_over_layers(scores, orders, own)
    assert counts.flatten().tolist() == expected
    in_layer = AdaKV(inner=inner, floor=0.0).distribute(*layers[0], own[:1])
    assert in_layer[0].tolist() == naive_winners(torch.stack(bids[:3]), budgets[:3], inner, 0.0)
