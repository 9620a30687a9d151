"""Water filling: shares in proportion to weights, none above 1, that add up to a total exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Weights below this fraction of the largest count as zero; dividing by them would overflow.
NEGLIGIBLE = 1e-200


def water_fill(
    weights: NDArray[np.float64], *, total: float, floor: float, start: NDArray[np.float64] | float = 0.0
) -> NDArray[np.float64]:
    """Shares `max(floor, start) + c * weight`, capped at 1, with `c` such that they sum to `total`.

    `start` `[N]` must not sum to more than `total`. Where it and the floor do so together, the floor is lowered. Where
    all caches with a positive weight are fully kept, the remainder is spread evenly over the others.
    """
    shares = np.full(weights.size, start)
    lift = np.maximum(floor - shares, 0.0)
    affordable = max(0.0, total - shares.sum())
    if lift.sum() > affordable:
        lift *= affordable / lift.sum()
    shares = _raise(shares + lift, weights, total)
    return _raise(shares, np.ones_like(weights), total)


def _raise(shares: NDArray[np.float64], weights: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    """`min(1, shares + c * weights)` with `c` such that they sum to `total`, or as near as positive weights come."""
    largest = weights.max()
    weights = np.where(weights > NEGLIGIBLE * largest, weights, 0.0) / (largest if largest > 0 else 1.0)
    left = total - shares.sum()
    rising = np.flatnonzero((weights > 0) & (shares < 1))
    if left <= 0 or not rising.size:
        return shares
    full_at = (1.0 - shares[rising]) / weights[rising]  # the `c` at which each would be full
    order = np.argsort(full_at, kind="stable")
    rising, full_at = rising[order], full_at[order]
    room, speed = 1.0 - shares[rising], weights[rising]
    spent = np.concatenate([[0.0], np.cumsum(room)[:-1]])  # by those that are full before each
    level = (left - spent) / np.cumsum(speed[::-1])[::-1]  # `c`, if exactly those were full
    enough = level <= full_at
    c = level[enough.argmax()] if enough.any() else full_at[-1]
    return np.minimum(1.0, shares + c * weights)
