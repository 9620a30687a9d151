"""A naive competition of KV caches for the sum of their budgets."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from baklava.eviction import H2O, TOVA, EvictionPolicy, ExpectedAttention, Knorm, Random, SnapKV, StreamingLLM

INNER: list[EvictionPolicy] = [
    SnapKV(window_size=3),
    H2O(),
    StreamingLLM(n_sink=2),
    ExpectedAttention(n_sink=1),
    Knorm(),
    Random(),
    TOVA(),
]


def naive_winners(scores: Tensor, budgets: Sequence[int], inner: EvictionPolicy, floor: float) -> list[int]:
    """Entries that each KV cache keeps, from scores `[N, S]`: one after another goes to the one with the best claim."""
    n_entries = scores.shape[-1]
    claims = []
    for head, budget in enumerate(budgets):
        order = kept_in_order(scores[head], inner, budget)
        n_protected = inner.protected_first(budget) + inner.protected_last(budget)
        sure = max(min(budget, 1) if floor else 0, int(floor * budget))
        for rank, entry in enumerate(order):
            # floor before protected before others; ties go to the lower head
            level, value = (0, 0.0) if rank < sure else (1, rank) if rank < n_protected else (2, -scores[head, entry])
            claims.append((level, float(value), head * n_entries + rank))
    winners = sorted(claims)[: sum(budgets)]
    return [sum(claim[2] // n_entries == head for claim in winners) for head in range(len(budgets))]


def kept_in_order(scores: Tensor, inner: EvictionPolicy, budget: int) -> list[int]:
    """Entries of one KV cache, the last to be evicted first."""
    n_entries = scores.shape[-1]
    first = list(range(min(inner.protected_first(budget), n_entries)))
    n_last = min(inner.protected_last(budget), n_entries)
    last = [entry for entry in reversed(range(n_entries - n_last, n_entries)) if entry not in first]
    others = [entry for entry in range(n_entries) if entry not in {*first, *last}]
    return first + last + sorted(others, key=lambda entry: -float(scores[entry]))
