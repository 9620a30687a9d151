"""StreamingLLM keeps the sinks, then the most recent entries."""

from __future__ import annotations

from itertools import pairwise

import pytest
from layer_contexts import kept, random_layer, scores_of

from baklava.eviction import StreamingLLM


def positions(policy: StreamingLLM, *, n_entries: int, budget: int) -> list[set[int]]:
    """Positions kept in each of 2 x 3 KV caches."""
    scores = scores_of(policy, *random_layer(n_entries, rows=2))
    return [set(row) for row in kept(policy, scores, budget).flatten(0, 1).tolist()]


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
        assert positions(policy, n_entries=n_entries, budget=budget) == [expected] * 6


def test_scores_never_tie() -> None:
    scores = scores_of(StreamingLLM(n_sink=4), *random_layer(100))
    assert scores[0, 0].unique().numel() == 100


def test_a_larger_budget_keeps_all_that_a_smaller_one_keeps() -> None:
    policy = StreamingLLM(n_sink=4)
    rows = [positions(policy, n_entries=12, budget=budget)[0] for budget in range(13)]
    assert all(smaller < larger for smaller, larger in pairwise(rows))
