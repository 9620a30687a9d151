"""The knapsack against a linear program, and what it promises for every curve and total."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.optimize import linprog

from baklava.allocation.knapsack import fit_falling, knapsack

LEVELS = np.array([0.0, 0.02, 0.1, 0.25, 0.5, 1.0])
ANY_CURVES = st.integers(1, 6).flatmap(
    lambda n: arrays(np.float64, (len(LEVELS) - 1, n), elements=st.floats(-1, 5).map(lambda x: round(x, 3)))
)
PART = st.floats(0, 1)
FLOORS = st.sampled_from([0.0, 0.02, 0.03, 0.5, 1.0])


def fallen(rises: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smoothed, with the full cache's loss at the end."""
    return np.concatenate([fit_falling(rises), np.zeros((1, rises.shape[1]))])


def hull_loss(shares: NDArray[np.float64], rises: NDArray[np.float64], floor: float) -> float:
    """Sum of the curves' lower hulls at these shares: each the least mean of its points with that mean share."""
    return sum(_least(curve[:, None], floor, total=share) for share, curve in zip(shares, rises.T, strict=True))


def _least(rises: NDArray[np.float64], floor: float, *, total: float) -> float:
    """Least sum of losses, each KV cache being any mixture of its points: a linear program over their weights."""
    n = rises.shape[1]
    x = np.concatenate([[floor], LEVELS[floor < LEVELS]])
    y = np.stack([np.interp(x, LEVELS, curve) for curve in rises.T])  # [N, K]
    sums = np.kron(np.eye(n), np.ones(len(x)))  # the weights of each cache
    equal = np.concatenate([sums, np.tile(x, n)[None]])
    found = linprog(y.ravel(), A_eq=equal, b_eq=[*np.ones(n), total], bounds=(0, 1))
    assert found.status == 0, found.message
    return float(found.fun)


@given(rises=ANY_CURVES, part=PART, floor=FLOORS)
@settings(max_examples=60)
def test_no_allocation_loses_less(rises: NDArray[np.float64], part: float, floor: float) -> None:
    curves, n = fallen(rises), rises.shape[1]
    total = n * (floor + part * (1 - floor))
    shares = knapsack(LEVELS, curves, total=total, floor=floor)
    assert hull_loss(shares, curves, floor) == pytest.approx(_least(curves, floor, total=total), abs=1e-6)


@given(rises=ANY_CURVES, part=PART, floor=FLOORS)
def test_totals_are_exact_and_the_floor_is_kept(rises: NDArray[np.float64], part: float, floor: float) -> None:
    n = rises.shape[1]
    shares = knapsack(LEVELS, fallen(rises), total=part * n, floor=floor)
    assert shares.sum() == pytest.approx(part * n, abs=1e-9)
    assert shares.min() >= min(floor, part) - 1e-12
    assert shares.max() <= 1


@given(rises=ANY_CURVES, one=PART, another=PART, floor=FLOORS)
@settings(max_examples=200)
def test_no_cache_gains_when_the_total_shrinks(
    rises: NDArray[np.float64], one: float, another: float, floor: float
) -> None:
    n = rises.shape[1]
    less, more = (knapsack(LEVELS, fallen(rises), total=n * part, floor=floor) for part in sorted((one, another)))
    assert (more >= less - 1e-12).all()


@given(rises=ANY_CURVES)
def test_smoothed_curves_fall_and_those_that_fell_stay(rises: NDArray[np.float64]) -> None:
    smooth = fit_falling(rises)
    assert (np.diff(smooth, axis=0) <= 1e-12).all()
    assert smooth.min() >= 0
    np.testing.assert_allclose(fit_falling(smooth), smooth, atol=1e-12)


def test_noise_is_averaged_with_its_neighbours() -> None:
    assert fit_falling(np.array([[3.0], [1.0], [2.0], [-1.0]]))[:, 0].tolist() == [3.0, 1.5, 1.5, 0.0]


def test_memory_goes_to_the_steepest_stretch_first() -> None:
    levels, rises = np.array([0.0, 0.5, 1.0]), np.array([[4.0, 3.0], [1.0, 2.5], [0.0, 0.0]])
    # Slopes: 6 and 2 of the first; the second is concave, so its hull is one line of slope 3.
    assert knapsack(levels, rises, total=0.4, floor=0.0) == pytest.approx([0.4, 0.0])
    assert knapsack(levels, rises, total=1.1, floor=0.0) == pytest.approx([0.5, 0.6])
    assert knapsack(levels, rises, total=1.7, floor=0.0) == pytest.approx([0.7, 1.0])


def test_equal_curves_share_evenly() -> None:
    rises = np.tile([[4.0], [1.0], [0.0]], 3)
    assert knapsack(np.array([0.0, 0.5, 1.0]), rises, total=1.2, floor=0.0) == pytest.approx([0.4] * 3)
