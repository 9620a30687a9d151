"""LAVa divides a model's budget among layers by the entropy of their scores, and each part among competing heads."""

from __future__ import annotations

import math

import pytest
import torch
from competition import naive_winners
from hypothesis import example, given
from hypothesis import strategies as st
from layer_contexts import N_KV_HEADS, naive_attention, random_layer, scores_of

from baklava.eviction import Lava
from baklava.eviction.lava import _divide


@pytest.mark.parametrize(("window", "kernel"), [(1, 1), (8, 3), (32, 7)])
def test_scores_are_the_naive_ones(window: int, kernel: int) -> None:
    queries, context = random_layer(60)
    scores = scores_of(Lava(window_size=window, kernel_size=kernel), queries, context, chunks=[30, 29, 1])
    mean = naive_attention(queries, context)[0, :, -window:].mean(1)  # [Hq, S]
    n, half = 60 - window, kernel // 2
    for head in range(N_KV_HEADS):
        longest = max(float(context.values[0, head, j].abs().sum()) for j in range(n))
        for entry in range(n):
            near = mean[2 * head : 2 * head + 2, max(0, entry - half) : min(n, entry + half + 1)]
            assert float(scores[0, head, entry]) == pytest.approx(float(near.max()) * longest, rel=1e-6)
    assert not scores[..., n:].any()


def test_layers_get_parts_by_entropy_and_heads_compete_for_them() -> None:
    policy = Lava(window_size=4, floor=0.25)
    scores = [scores_of(policy, *random_layer(60, seed=layer))[0] for layer in range(3)]
    scores[1] = scores[1] ** 4  # attention is less spread
    budgets = torch.tensor([[30, 1, 2], [0, 20, 17], [5, 5, 20]])
    counts = policy.distribute_over_layers(scores, scores, budgets)
    entropies = []
    for layer in scores:
        shares = layer[:, :-4].flatten() / layer[:, :-4].sum()
        entropies.append(-sum(float(share) * math.log(share) for share in shares))
    wanted = [12 + 64 * entropy / sum(entropies) for entropy in entropies]  # 100 entries, 36 of them in windows
    for row, part, layer in zip(counts, wanted, scores, strict=True):
        assert abs(int(row.sum()) - part) < 1
        even = [int(row.sum()) // 3 + (i < int(row.sum()) % 3) for i in range(3)]
        assert row.tolist() == naive_winners(layer, even, policy, 0.25)
    assert int(counts[1].sum()) < int(counts[0].sum())


ANY, NEARLY_ALL = (
    st.lists(st.lists(st.integers(n, 12), min_size=3, max_size=3), min_size=1, max_size=3) for n in (0, 11)
)


@given(ANY | NEARLY_ALL, st.integers(1, 16))
@example([[12, 12, 12]] * 2, 4)
def test_the_total_is_exact_and_none_keeps_more_than_there_is(budgets: list[list[int]], window: int) -> None:
    policy = Lava(window_size=window)
    scores = [scores_of(policy, *random_layer(12, seed=layer))[0] ** (1 + 3 * layer) for layer in range(len(budgets))]
    counts = policy.distribute_over_layers(scores, scores, torch.tensor(budgets))
    assert int(counts.sum()) == sum(map(sum, budgets))
    assert int(counts.max()) <= 12


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(0, 9)), min_size=1, max_size=6), st.data())
def test_a_division_is_exact_proportional_and_within_its_room(
    parts: list[tuple[float, int]], data: st.DataObject
) -> None:
    weights, room = [weight for weight, _ in parts], [n for _, n in parts]
    total = data.draw(st.integers(0, sum(room)))
    counts = _divide(total, weights, room)
    assert sum(counts) == total
    assert all(0 <= count <= n for count, n in zip(counts, room, strict=True))
    for i, j in ((i, j) for i in range(len(parts)) for j in range(len(parts))):
        if weights[i] > weights[j] and counts[i] < room[i]:
            assert counts[i] >= counts[j] - 1
