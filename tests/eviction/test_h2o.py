"""H2O sums the attention that each entry ever got, and reserves a part of the budget for recent entries."""

from __future__ import annotations

import pytest
import torch
from layer_contexts import kept, naive_attention, random_layer, scores_of

from baklava.eviction import H2O, observed


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("max_weights", [1, 150, 700, 2**26])
def test_scores_are_the_naive_sums_whatever_the_block(
    max_weights: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observed, "MAX_WEIGHTS_CPU", max_weights)
    queries, context = random_layer(25, rows=2, softcap=softcap)
    expected = naive_attention(queries, context).sum(2).unflatten(1, (3, 2)).mean(2)
    for chunks in ([25], [10, 1, 14]):
        torch.testing.assert_close(scores_of(H2O(), queries, context, chunks=chunks), expected)


def test_attention_of_every_query_adds_up_to_one() -> None:
    scores = scores_of(H2O(), *random_layer(40, rows=2))
    torch.testing.assert_close(scores.sum(-1), torch.full((2, 3), 40.0, dtype=torch.float64))


@pytest.mark.parametrize("budget", [1, 2, 7, 8, 19])
def test_half_of_the_budget_is_recent_and_the_rest_heavy(budget: int) -> None:
    scores = scores_of(H2O(), *random_layer(20))[0]
    n_recent = budget // 2
    for head, positions in enumerate(kept(H2O(), scores, budget).tolist()):
        recent = set(range(20 - n_recent, 20))
        heavy = set(scores[head, : 20 - n_recent].topk(budget - n_recent).indices.tolist())
        assert set(positions) == recent | heavy


@pytest.mark.parametrize(("recent", "expected"), [(0.0, 0), (0.25, 2), (1.0, 10)])
def test_the_recent_part_can_be_set(recent: float, expected: int) -> None:
    assert H2O(recent=recent).protected_last(10) == expected
