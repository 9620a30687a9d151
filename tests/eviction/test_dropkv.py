"""DropKV scores by how far outputs move without an entry."""

from __future__ import annotations

import pytest
import torch
from layer_contexts import N_HEADS, N_KV_HEADS, naive_attention, random_layer, scores_of
from torch import Tensor

from baklava.eviction import DropKV
from baklava.eviction.base import LayerContext


def naive(queries: Tensor, context: LayerContext, *, window: int, kernel: int) -> Tensor:
    """Squared changes of the outputs `[B, Hkv, S]`, each entry really left out of the softmax."""
    weights = naive_attention(queries, context)[:, :, -window:]  # [B, Hq, W, S]
    values = context.values.repeat_interleave(N_HEADS // N_KV_HEADS, 1)
    n_entries = values.shape[2]
    shifts = values.new_zeros(values.shape[:3])
    for entry in range(n_entries):
        others = [other for other in range(n_entries) if other != entry]
        left = weights[..., others] / weights[..., others].sum(-1, keepdim=True)
        change = left @ values[:, :, others] - weights @ values
        shifts[..., entry] = change.square().sum((-1, -2))
    shifts = shifts.unflatten(1, (N_KV_HEADS, -1)).mean(2)
    pooled = torch.zeros_like(shifts)
    for entry in range(n_entries):
        pooled[..., entry] = shifts[..., max(0, entry - kernel // 2) : entry + kernel // 2 + 1].sum(-1) / kernel
    return pooled


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("window", "kernel"), [(1, 1), (4, 7), (20, 3)])
def test_scores_are_the_naive_ones(window: int, kernel: int, softcap: float | None) -> None:
    queries, context = random_layer(20, rows=2, softcap=softcap)
    policy = DropKV(window_size=window, kernel_size=kernel, epsilon=1e-12)
    scores = scores_of(policy, queries, context, chunks=[11, 6, 3])
    expected = naive(queries, context, window=window, kernel=kernel)
    if window == 20:  # the first query sees one entry, and has no output without it
        first = slice(kernel // 2 + 1, None)
        scores, expected = scores[..., first], expected[..., first]
    torch.testing.assert_close(scores, expected)


def test_an_entry_like_the_output_matters_less() -> None:
    queries, context = random_layer(20)
    before = scores_of(DropKV(window_size=1, kernel_size=1), queries, context)
    context.values[:, :, 5] = (naive_attention(queries, context)[:, ::2, -1:, :] @ context.values)[:, :, 0]
    after = scores_of(DropKV(window_size=1, kernel_size=1), queries, context)
    assert bool((after[..., 5] < before[..., 5]).all())
