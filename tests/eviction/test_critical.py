"""CriticalKV keeps half of a budget by the scores of another policy, and half by those times what values write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from layer_contexts import kept, order_of, random_layer, scores_and_order_of, scores_of
from quantised_linears import Packed4Bit, Scaled8Bit, WeightOnly
from torch import Tensor, nn

from baklava.errors import UserError
from baklava.eviction import (
    AdaKV,
    Critical,
    Defensive,
    EvictionPolicy,
    ExpectedAttention,
    Knorm,
    SnapKV,
    StreamingLLM,
    written,
)
from baklava.eviction.base import LayerContext


def naive_lengths(context: LayerContext) -> Tensor:
    """`mean ||W_o v||_1` over the group `[B, Hkv, S]`, entry by entry."""
    assert context.path is not None
    weight = context.path.projection.weight.double()  # [hidden, Hq * D]
    batch, n_kv_heads, n_entries, dim = context.values.shape
    group = weight.shape[1] // dim // n_kv_heads
    lengths = torch.zeros(batch, n_kv_heads, n_entries, dtype=torch.float64)
    for row, head, entry in torch.cartesian_prod(*(torch.arange(n) for n in lengths.shape)).tolist():
        for query_head in range(head * group, (head + 1) * group):
            columns = weight[:, query_head * dim : (query_head + 1) * dim]
            added = columns @ context.values[row, head, entry].double()
            lengths[row, head, entry] += added.abs().sum() / group
    return lengths


def naive(scores: Tensor, lengths: Tensor, policy: Critical, budget: int) -> list[int]:
    """What one KV cache keeps of scores and lengths `[S]`."""
    n = len(scores)
    first, last = policy.inner.protected_first(budget), policy.inner.protected_last(budget)
    protected = [*range(min(first, n)), *(entry for entry in reversed(range(max(first, n - last), n)))]
    others = [entry for entry in scores.argsort(descending=True).tolist() if entry not in protected]
    chosen = [*protected, *others][: max(1, int(policy.first * budget), min(len(protected), budget))]
    weighed = ((scores + policy.epsilon) * lengths).argsort(descending=True).tolist()
    return sorted([*chosen, *(entry for entry in weighed if entry not in chosen)][:budget])


@pytest.mark.parametrize("block", [1, 700, 2**25])
def test_lengths_are_the_naive_ones_whatever_the_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "BLOCK_NUMBERS_CPU", block)
    _, context = random_layer(9, rows=2)
    torch.testing.assert_close(written.written_lengths(context), naive_lengths(context), rtol=1e-6, atol=0)


@pytest.mark.parametrize("stored", [Scaled8Bit, Packed4Bit, WeightOnly])
def test_weights_that_are_not_plain_numbers_count_as_what_they_do(stored: Any) -> None:
    """Never as packed bits: the lengths are those of the weights that the module applies."""
    _, context = random_layer(9)
    assert context.path is not None
    quantised = stored(context.path.projection)
    plain = nn.Linear(*reversed(quantised.dequantised().shape), bias=False).requires_grad_(False)
    plain.weight.copy_(quantised.dequantised())
    expected = naive_lengths(replace(context, path=replace(context.path, projection=plain)))
    lengths = written.written_lengths(replace(context, path=replace(context.path, projection=quantised)))
    torch.testing.assert_close(lengths, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "policy",
    [
        Critical(inner=SnapKV(window_size=4)),
        Critical(inner=StreamingLLM(n_sink=2), first=0.25),
        Critical(inner=ExpectedAttention(use_vnorm=False, n_sink=3), epsilon=0.01),
        Critical(inner=Knorm(), first=0.0, epsilon=5.0),
    ],
    ids=str,
)
def test_kept_entries_are_the_naive_ones(policy: Critical) -> None:
    queries, context = random_layer(40)
    scores, lengths = scores_of(policy, queries, context), naive_lengths(context)
    order = order_of(policy, queries, context)
    torch.testing.assert_close(scores, scores_of(policy.inner, queries, context))
    for budget in (8, 9, 20, 39, 40):
        for head, positions in enumerate(kept(policy, order, budget)[0].tolist()):
            assert positions == naive(scores[0, head], lengths[0, head], policy, budget)


def test_values_that_write_nothing_lose_the_second_half() -> None:
    queries, context = random_layer(40)
    context.values[:, :, 10:20] = 0
    policy = Critical(inner=StreamingLLM(n_sink=0), first=0.5)
    order = order_of(policy, queries, context)
    assert not set(range(10, 20)) & set(kept(policy, order, 20)[0, 0].tolist())
    assert set(range(30, 40)) <= set(kept(policy, order, 20)[0, 0].tolist())  # the first half


def test_a_policy_that_weighs_values_itself_is_refused() -> None:
    with pytest.raises(UserError, match="critical cannot go over defensive, which weighs values itself"):
        Critical(inner=Defensive())


def test_kv_caches_compete_by_the_scores_of_the_inner_policy() -> None:
    queries, context = random_layer(40)
    inner, budgets = SnapKV(window_size=4), torch.full((1, 3), 12)
    policy: EvictionPolicy = AdaKV(inner=Critical(inner=inner))
    scores, order = scores_and_order_of(policy, queries, context)
    expected = AdaKV(inner=inner).distribute(*scores_and_order_of(inner, queries, context), budgets)
    assert torch.equal(policy.distribute(scores, order, budgets), expected)
    assert torch.equal(order, order_of(Critical(inner=inner), queries, context))
