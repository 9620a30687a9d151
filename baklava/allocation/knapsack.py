"""Shares that lose least where every KV cache's loss at every share is known: a knapsack over lower convex hulls."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fit_falling(rises: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest curves (least squares) that fall along the first axis and stay at or above 0, `[K, N]`.

    More memory never raises the true loss: where noise says that it does, neighbouring levels take their mean.
    """
    from scipy.optimize import isotonic_regression

    return np.stack([np.maximum(isotonic_regression(curve, increasing=False).x, 0.0) for curve in rises.T], 1)


def knapsack(
    levels: NDArray[np.float64], rises: NDArray[np.float64], *, total: float, floor: float
) -> NDArray[np.float64]:
    """Shares `[N]` in [floor, 1] that sum to `total`, with the least sum of hulls of the curves.

    `levels` `[K]` rise to 1; `rises` `[K, N]` fall, one column per KV cache. Every cache begins at `floor` (evenly
    lower where the total is not enough); then memory goes to the steepest segment of any hull, which is optimal since
    hulls only flatten. Equally steep segments fill at the same pace. The order does not depend on the total, so no
    cache gains when it shrinks.
    """
    n = rises.shape[1]
    begin = min(floor, total / n)
    owners, lengths, slopes = _segments(levels, rises, floor)
    _, group = np.unique(-slopes, return_inverse=True)  # 0: the steepest
    room = np.bincount(group, lengths)
    spent = np.cumsum(room) - room
    filled = np.clip((total - begin * n - spent) / room, 0.0, 1.0)
    return np.minimum(begin + np.bincount(owners, lengths * filled[group], minlength=n), 1.0)


def _segments(
    levels: NDArray[np.float64], rises: NDArray[np.float64], floor: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Straight segments of all hulls between `floor` and 1: their KV caches, lengths, and loss saved per share."""
    x = np.concatenate([[floor], levels[levels > floor]])
    owners, lengths, slopes = [], [], []
    for cache, curve in enumerate(rises.T):
        y = np.concatenate([[np.interp(floor, levels, curve)], curve[levels > floor]])
        hull = lower_hull(x, y)
        lengths.append(np.diff(x[hull]))
        slopes.append(-np.diff(y[hull]) / lengths[-1])
        owners.append(np.full(len(hull) - 1, cache))
    return np.concatenate(owners), np.concatenate(lengths), np.concatenate(slopes)


def lower_hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[int]:
    """Indices of the corners of the lower convex hull, `x` rising."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1 and _above(x, y, hull[-2], hull[-1], i):
            hull.pop()
        hull.append(i)
    return hull


def _above(x: NDArray[np.float64], y: NDArray[np.float64], a: int, b: int, c: int) -> bool:
    """Whether the point `b` lies on or above the line from `a` to `c`."""
    return bool((y[b] - y[a]) * (x[c] - x[a]) >= (y[c] - y[a]) * (x[b] - x[a]))
