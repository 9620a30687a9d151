"""Filling by weights: an exact total, floors and ceilings, proportions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from baklava.allocation.water_filling import water_fill

CLOSE = 1e-9

PART = st.floats(0, 1)
WEIGHTS = st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1.0, 5e-324, 1e-200]), min_size=1, max_size=20).map(np.array)


class TestFill:
    @given(WEIGHTS, PART, PART)
    @example(np.array([1.0, 0.0, 0.0]), 0.9, 0.0)  # the weights run out
    @example(np.array([5e-324, 1.0]), 0.9, 0.0)
    def test_total_is_exact_and_shares_are_shares(self, weights: np.ndarray, mean: float, floor: float) -> None:
        shares = water_fill(weights, total=mean * weights.size, floor=floor)
        assert abs(shares.sum() - mean * weights.size) < CLOSE
        assert ((shares >= 0) & (shares <= 1)).all()

    @given(WEIGHTS, PART, PART)
    def test_floor_is_respected_as_far_as_the_total_allows(
        self, weights: np.ndarray, mean: float, floor: float
    ) -> None:
        assert (water_fill(weights, total=mean * weights.size, floor=floor) >= min(floor, mean) - CLOSE).all()

    @given(WEIGHTS, PART, PART)
    def test_a_larger_weight_never_gets_less(self, weights: np.ndarray, mean: float, floor: float) -> None:
        shares = water_fill(weights, total=mean * weights.size, floor=floor)
        assert (np.diff(shares[np.argsort(weights, kind="stable")]) >= -CLOSE).all()

    @given(st.integers(1, 20), st.floats(0, 1), PART, PART)
    def test_equal_weights_get_equal_shares(self, n: int, weight: float, mean: float, floor: float) -> None:
        assert np.abs(water_fill(np.full(n, weight), total=mean * n, floor=floor) - mean).max() < CLOSE

    def test_above_the_floor_shares_are_proportional(self) -> None:
        shares = water_fill(np.array([3.0, 1.0, 0.0]), total=0.7, floor=0.1)
        assert shares == pytest.approx([0.4, 0.2, 0.1])

    def test_what_a_whole_cache_leaves_goes_to_the_others_in_proportion(self) -> None:
        shares = water_fill(np.array([10.0, 2.0, 1.0]), total=1.6, floor=0.0)
        assert shares == pytest.approx([1.0, 0.4, 0.2])

    def test_what_the_weights_cannot_take_is_spread_evenly(self) -> None:
        shares = water_fill(np.array([1.0, 0.0, 0.0]), total=1.5, floor=0.1)
        assert shares == pytest.approx([1.0, 0.25, 0.25])

    def test_a_head_start_counts_as_the_floor_where_it_is_higher(self) -> None:
        shares = water_fill(np.array([1.0, 1.0, 1.0]), total=1.6, floor=0.1, start=np.array([0.8, 0.0, 0.0]))
        assert shares == pytest.approx([1.0, 0.3, 0.3])
