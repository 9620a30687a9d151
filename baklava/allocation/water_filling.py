"""Shares in proportion to weights, none above 1, that add up to a total exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Weights below this part of the largest count as zero; they would overflow when divided by.
NEGLIGIBLE = 1e-200


def water_fill(
    weights: NDArray[np.float64], *, total: float, floor: float, start: NDArray[np.float64] | float = 0.0
) -> NDArray[np.float64]:
    """Shares `max(floor, start) + c * weight`, cut at 1, with `c` such that they sum to `total`.

    `start` `[N]` must not sum to more than `total`. Where it and the floor do so together, the floor is lowered.
    Where the weights run out (all caches with a positive one are whole) the rest is spread evenly over the others.
    """
    begun = np.full(weights.size, start)
    lift = np.maximum(floor - begun, 0.0)
    affordable = max(0.0, total - begun.sum())
    if lift.sum() > affordable:
        lift *= affordable / lift.sum()
    shares = _raised(begun + lift, weights, total)
    return _raised(shares, np.ones_like(weights), total)


def _raised(shares: NDArray[np.float64], weights: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    """`min(1, shares + c * weights)` with `c` such that they sum to `total`, or as near as positive weights come."""
    largest = weights.max()
    weights = np.where(weights > NEGLIGIBLE * largest, weights, 0.0) / (largest if largest > 0 else 1.0)
    left = total - shares.sum()
    rising = np.flatnonzero((weights > 0) & (shares < 1))
    if left <= 0 or not rising.size:
        return shares
    whole_at = (1.0 - shares[rising]) / weights[rising]  # the `c` at which each would be whole
    order = np.argsort(whole_at, kind="stable")
    rising, whole_at = rising[order], whole_at[order]
    room, speed = 1.0 - shares[rising], weights[rising]
    spent = np.concatenate([[0.0], np.cumsum(room)[:-1]])  # by those that are whole before each
    level = (left - spent) / np.cumsum(speed[::-1])[::-1]  # `c`, if exactly those were whole
    enough = level <= whole_at
    c = level[enough.argmax()] if enough.any() else whole_at[-1]
    return np.minimum(1.0, shares + c * weights)
