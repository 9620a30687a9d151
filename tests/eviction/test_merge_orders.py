"""Two orders become one, in which every budget is filled from both."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baklava.eviction.merge_orders import merge_orders


def naive(first: list[float], then: list[float], fraction: float, budget: int) -> set[int]:
    """The entries of one budget: so many of the best by `first`, then the best others by `then`."""
    entries = range(len(first))
    n_first = max(int(fraction > 0), int(fraction * budget))
    chosen = sorted(entries, key=lambda entry: -first[entry])[:n_first]
    others = sorted((entry for entry in entries if entry not in chosen), key=lambda entry: -then[entry])
    return {*chosen, *others[: budget - n_first]}


@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.booleans())
def test_every_budget_keeps_what_it_would_by_itself(seed: int, length: int, fraction: float, alike: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, then = torch.randint(12, (2, 3, length), generator=generator).double()  # with ties
    if alike:
        then = first.roll(length // 3, -1)
    merged = merge_orders(first, then, fraction)
    for row in range(3):
        order = merged[row].argsort(descending=True).tolist()
        for budget in range(1, length + 1):
            assert set(order[:budget]) == naive(first[row].tolist(), then[row].tolist(), fraction, budget)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_all_of_one_order_is_that_order(fraction: float) -> None:
    first, then = torch.randn(2, 2, 3, 50, generator=torch.Generator().manual_seed(0))
    merged = merge_orders(first, then, fraction)
    assert torch.equal(merged.argsort(), (first if fraction else then).argsort())
