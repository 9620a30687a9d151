"""Shares grow where influence promises most, never shrink on the way up, and meet every total."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.inference.influence import LEVELS
from baklava.search.allowance import Allowance
from baklava.search.growth import Growth, spend
from baklava.system.progress import Progress

LEVEL = np.array(LEVELS)
PROMPTS = [Prompt("none", index, "context", "question", "answer") for index in range(8)]


class Separable:
    """Losses that are the sum of what each KV cache lacks of its need, times its weight; influence is exact."""

    def __init__(self, needs: Sequence[float], weights: Sequence[float]):
        self.needs, self.weights = np.array(needs), np.array(weights)
        self.prompts_seen: set[int] = set()

    def _loss(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.weights * np.clip(self.needs - shares, 0.0, None)

    def losses(self, prompt: Prompt, budgets: Sequence[Budgets]) -> NDArray[np.float64]:
        return np.array([self._loss(one.shares.ravel()).sum() for one in budgets])

    def influence(self, prompts: Sequence[Prompt], budgets: Budgets) -> NDArray[np.float64]:
        self.prompts_seen |= {prompt.index for prompt in prompts}
        at_levels = np.stack([self._loss(np.full(budgets.shares.size, level)) for level in LEVELS])
        return (at_levels - self._loss(budgets.shares.ravel())).reshape(len(LEVELS), *budgets.shape)


def grown(
    source: Separable,
    total: float,
    *,
    refine: int = 0,
    prompts: Sequence[Prompt] = PROMPTS,
    limit: float | None = None,
    group: int = 1,
) -> Growth:
    growth = Growth(source, prompts, (2, 2), Progress(disable=True), Allowance(limit), group)
    growth.climb(total, refine=refine)
    return growth


def test_memory_goes_where_it_is_needed_most() -> None:
    growth = grown(Separable([0.8, 0.0, 0.3, 0.0], [10.0, 0.0, 1.0, 0.0]), 0.275)
    np.testing.assert_allclose(growth.shares(0.275), [0.8, 0.0, 0.3, 0.0], atol=0.05)


@given(
    arrays(np.float64, 4, elements=st.floats(0.0, 1.0)),
    arrays(np.float64, 4, elements=st.floats(0.0, 5.0)),
    st.integers(0, 2),
)
def test_budgets_are_nested_and_meet_their_totals(
    needs: NDArray[np.float64], weights: NDArray[np.float64], refine: int
) -> None:
    growth = grown(Separable(needs.tolist(), weights.tolist()), 0.9, refine=refine)
    totals = (0.001, 0.01, 0.03, 0.05, 0.1, 0.17, 0.4, 0.5, 0.9)
    path = [growth.shares(total) for total in totals]
    for total, shares in zip(totals, path, strict=True):
        assert shares.mean() == pytest.approx(total, abs=1e-9)
        assert shares.min() >= 0.0 and shares.max() <= 1.0
    assert all((above >= below - 1e-12).all() for below, above in pairwise(path))


def test_a_group_grows_where_its_members_need_most_together() -> None:
    """Alone, the first KV cache gains most; the second group gains more together."""
    source = Separable([0.8, 0.0, 0.8, 0.8], [3.0, 0.0, 2.0, 2.0])
    np.testing.assert_allclose(grown(source, 0.2).shares(0.2), [0.8, 0.0, 0.0, 0.0], atol=0.1)
    np.testing.assert_allclose(grown(source, 0.2, group=2).shares(0.2), [0.0, 0.4], atol=0.1)
    np.testing.assert_allclose(grown(source, 0.4, refine=2, group=2).shares(0.4), [0.0, 0.8], atol=0.1)


def test_the_path_does_not_depend_on_how_far_it_is_climbed() -> None:
    source = Separable([0.8, 0.1, 0.3, 0.6], [10.0, 1.0, 1.0, 3.0])
    np.testing.assert_array_equal(grown(source, 0.2, refine=2).shares(0.15), grown(source, 0.9, refine=2).shares(0.15))


def test_a_cap_stops_growth_and_the_remainder_is_even() -> None:
    source = Separable([0.8, 0.1, 0.3, 0.6], [10.0, 1.0, 1.0, 3.0])
    free, capped = grown(source, 0.9), grown(source, 0.9, limit=free_until_half(source))
    assert (free.allowance.capped, capped.allowance.capped) == (False, True)
    assert capped.allowance.spent < free.allowance.spent
    last = capped.rungs[-2]
    np.testing.assert_array_equal(last, free.rungs[len(capped.rungs) - 2])  # so far the same
    np.testing.assert_allclose(capped.shares(0.9), last + (1 - last) * (0.9 - last.mean()) / (1 - last.mean()))
    least = grown(source, 0.9, refine=2, limit=0.0)
    assert least.allowance.capped and least.shares(0.5) == pytest.approx(np.full(4, 0.5))


def free_until_half(source: Separable) -> float:
    """What it takes to climb to a half."""
    return grown(source, 0.5).allowance.spent


def test_prompts_that_are_held_back_are_not_looked_at() -> None:
    source = Separable([0.8, 0.0, 0.3, 0.0], [10.0, 0.0, 1.0, 0.0])
    growth = grown(source, 0.3)
    assert source.prompts_seen == set(range(6))
    [rung] = growth.measure([growth.shares(0.3)])
    assert rung.held_back == pytest.approx(rung.loss)
    [alone] = grown(source, 0.3, prompts=PROMPTS[:3]).measure([growth.shares(0.3)])
    assert np.isnan(alone.held_back)


class TestSpend:
    def test_the_steepest_gain_comes_first(self) -> None:
        influence = np.stack([-LEVEL, -3.0 * LEVEL], 1)
        shares = spend(np.array([0.0, 0.0]), LEVEL, influence, total=0.5, gain=0.3)
        np.testing.assert_allclose(shares, [0.2, 0.3])

    def test_a_gain_that_begins_late_counts_as_its_hull(self) -> None:
        late = np.where(LEVEL >= 0.2, -1.0, 0.0)  # nothing below 0.2, all of it there: 5 per share
        shares = spend(np.array([0.0, 0.0]), LEVEL, np.stack([late, -2.0 * LEVEL], 1), total=0.2, gain=1.0)
        np.testing.assert_allclose(shares, [0.2, 0.0])

    def test_what_nobody_needs_is_spread_over_what_is_free(self) -> None:
        shares = spend(np.array([0.5, 0.0]), LEVEL, np.zeros((len(LEVEL), 2)), total=0.8, gain=0.3)
        np.testing.assert_allclose(shares, [0.6, 0.2])

    @given(
        arrays(np.float64, 3, elements=st.floats(0.0, 1.0)),
        arrays(np.float64, (len(LEVELS), 3), elements=st.floats(-2.0, 2.0)),
        st.floats(0.0, 1.0),
    )
    def test_the_total_is_met_and_no_share_falls(
        self, shares: NDArray[np.float64], influence: NDArray[np.float64], fraction: float
    ) -> None:
        total = shares.sum() + fraction * (3.0 - shares.sum())
        raised = spend(shares, LEVEL, influence, total=total, gain=0.25)
        assert raised.sum() == pytest.approx(total, abs=1e-9)
        assert (raised >= shares).all() and (raised <= 1.0).all()
