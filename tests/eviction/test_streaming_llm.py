"""StreamingLLM keeps the sinks, then the most recent entries."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from baklava.eviction import StreamingLLM


def kept(policy: StreamingLLM, *, n_entries: int, budget: int) -> list[set[int]]:
    """Positions of the `budget` best scores, for each of 2 x 3 KV caches."""
    scores = policy.score(torch.randn(2, 3, n_entries, 4), torch.randn(2, 3, n_entries, 4))
    assert scores.shape == (2, 3, n_entries)
    best = scores.reshape(6, n_entries).topk(budget, dim=-1).indices
    return [set(row.tolist()) for row in best]


def naive(*, n_entries: int, n_sink: int, budget: int) -> set[int]:
    """The first `n_sink`, then from the end backwards, until `budget` are kept."""
    sinks = list(range(min(n_sink, n_entries)))
    recent = [position for position in reversed(range(n_entries)) if position not in sinks]
    return set((sinks + recent)[:budget])


@pytest.mark.parametrize("n_sink", [0, 1, 4, 13, 20])
@pytest.mark.parametrize("n_entries", [1, 5, 13])
def test_every_budget_keeps_sinks_and_the_most_recent(n_sink: int, n_entries: int) -> None:
    policy = StreamingLLM(n_sink=n_sink)
    for budget in range(n_entries + 1):
        expected = naive(n_entries=n_entries, n_sink=n_sink, budget=budget)
        assert kept(policy, n_entries=n_entries, budget=budget) == [expected] * 6


def test_scores_never_tie() -> None:
    scores = StreamingLLM(n_sink=4).score(torch.zeros(1, 1, 100, 2), torch.zeros(1, 1, 100, 2))
    assert scores.unique().numel() == 100


def test_a_larger_budget_keeps_all_that_a_smaller_one_keeps() -> None:
    policy = StreamingLLM(n_sink=4)
    rows = [kept(policy, n_entries=12, budget=budget)[0] for budget in range(13)]
    assert all(smaller < larger for smaller, larger in pairwise(rows))
