"""One budget pays for sinks, for the newest entries, and for what stands out among the others."""

from __future__ import annotations

from itertools import pairwise

from layer_contexts import kept, random_layer, scores_of

from baklava.eviction import KeyDiff, KeyDiffRecent


def test_a_quarter_of_the_budget_is_for_the_newest() -> None:
    queries, context = random_layer(40)
    policy = KeyDiffRecent(n_sink=2, recent=0.25)
    scores = scores_of(policy, queries, context)
    by_keydiff = scores_of(KeyDiff(), queries, context)[0]
    for head, entries in enumerate(kept(policy, scores, 12)[0].tolist()):
        others = by_keydiff[head, 2:-3].argsort(descending=True, stable=True)[:7] + 2
        assert sorted(entries) == sorted([0, 1, *others.tolist(), 37, 38, 39])


def test_a_larger_budget_keeps_all_that_a_smaller_one_does() -> None:
    queries, context = random_layer(40)
    scores = scores_of(KeyDiffRecent(), queries, context)
    sets = [set(kept(KeyDiffRecent(), scores, budget)[0, 0].tolist()) for budget in range(1, 41)]
    assert all(smaller < larger for smaller, larger in pairwise(sets))
