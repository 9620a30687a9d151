"""Bits per KV cache go where influence promises most per byte, and only where all prompts agree that they help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from baklava.allocation.baklava import Baklava
from baklava.allocation.fitted import Grown
from baklava.budgets import Budgets
from baklava.budgets.bits import EntrySize, label_of
from baklava.calibration.prompts import Prompt
from baklava.errors import UserError
from baklava.inference.influence import LEVELS
from baklava.search.allowance import Allowance
from baklava.search.growth import Growth
from baklava.search.widths import raise_bits, search_widths
from baklava.system.progress import Progress

PROMPTS = [Prompt("none", index, "context", "question", "answer") for index in range(8)]
WIDTHS = (16, 8, 4, 2)
HELD_BACK = 6  # the first of the prompts that are


def rounding(bits: NDArray[np.int64]) -> NDArray[np.float64]:
    """The square of a step, 1 at 2 bits."""
    return np.where(bits == 16, 0.0, (3.0 / (2.0**bits - 1.0)) ** 2)


class Sensitive:
    """Each KV cache loses the entries that it lacks, and what rounding keys and values costs it, times its weight.

    `held_back` weights stand in for those of rounding on the prompts held back.
    """

    def __init__(self, to_rounding: Sequence[float], held_back: Sequence[float] | None = None):
        self.weights = np.array(to_rounding)
        self.held_back = self.weights if held_back is None else np.array(held_back)

    def losses(self, prompt: Prompt, budgets: Sequence[Budgets]) -> NDArray[np.float64]:
        weights = self.held_back if prompt.index >= HELD_BACK else self.weights
        return np.array([self._lacks(one) + (weights[:, None] * self._rounding(one)).sum() for one in budgets])

    def influence(self, prompts: Sequence[Prompt], budgets: Budgets) -> NDArray[np.float64]:
        levels = np.array(LEVELS)[:, None]
        return (
            np.clip(budgets.shares.ravel() - levels, 0.0, None) - np.clip(levels - budgets.shares.ravel(), 0.0, None)
        ).reshape(len(LEVELS), *budgets.shape)

    def precision(self, prompts: Sequence[Prompt], budgets: Budgets, widths: Sequence[int]) -> NDArray[np.float64]:
        assert all(prompt.index < HELD_BACK for prompt in prompts)
        at_widths = rounding(np.array(widths))[None, :, None] - self._rounding(budgets).T[:, None]  # [2, W, N]
        return (at_widths * self.weights).reshape(2, len(widths), *budgets.shape)

    def _lacks(self, budgets: Budgets) -> float:
        return float((1.0 - budgets.shares).sum())

    def _rounding(self, budgets: Budgets) -> NDArray[np.float64]:
        bits = np.full((budgets.shares.size, 2), 16) if budgets.bits is None else budgets.bits.reshape(-1, 2)
        return rounding(bits)


def found(
    source: Sensitive, ratio: float, *, per_cache: bool = True, limit: float | None = None
) -> tuple[Growth, Grown]:
    growth = Growth(source, PROMPTS, (2, 2), Progress(disable=True), Allowance(limit))
    growth.climb(0.8, refine=0)
    return growth, search_widths(growth, [ratio], WIDTHS, per_cache=per_cache, model="none")[ratio]


def test_the_bytes_go_to_the_kv_cache_that_rounding_hurts() -> None:
    """In 2 bits three KV caches lose next to nothing; one needs 8, and then there are bytes for more entries."""
    source = Sensitive([50.0, 0.001, 0.001, 0.001])
    growth, own = found(source, 0.75)
    _, one = found(source, 0.75, per_cache=False)
    assert label_of(np.asarray(own.bits)) == "mixed" and own.bits[0, 0].tolist() == [8, 8]
    assert own.bits.reshape(-1, 2)[1:].max() <= 4
    assert own.loss < one.loss and own.shares.mean() > one.shares.mean()
    budgets = growth.budgets(own.shares, ratio=0.75, bits=own.bits)
    size = EntrySize()
    stored = size.packing.cache_bytes(budgets.entries(1024, size), budgets.bits, size.dims, 2).sum()
    assert stored <= 0.25 * 4 * 1024 * size.n_bytes
    assert {move for move, *_ in own.others} >= {f"grown, {width} bits" for width in WIDTHS}


def test_prompts_held_back_have_to_agree() -> None:
    source = Sensitive([50.0, 0.001, 0.001, 0.001], held_back=[0.001, 50.0, 0.001, 0.001])
    _, own = found(source, 0.75)
    _, one = found(source, 0.75, per_cache=False)
    assert label_of(np.asarray(own.bits)) == label_of(np.asarray(one.bits)) != "mixed"


def test_the_width_is_chosen_on_all_prompts() -> None:
    """Those held back lose nothing in 2 bits; the others lose much in them."""
    source = Sensitive([5.0, 5.0, 5.0, 5.0], held_back=[0.0, 0.0, 0.0, 0.0])
    _, one = found(source, 0.75, per_cache=False)
    assert np.unique(one.bits).tolist() == [4]


def test_a_cap_leaves_one_width() -> None:
    _, own = found(Sensitive([50.0, 0.001, 0.001, 0.001]), 0.75, limit=0.0)
    assert label_of(np.asarray(own.bits)) != "mixed"


class TestRaise:
    def test_what_costs_more_has_to_promise_more(self) -> None:
        """Equal promises: the KV cache with fewer entries is the cheaper one; then what is left pays for the other."""
        promise = np.broadcast_to(np.array([0.0, -1.0])[None, :, None], (2, 2, 2))
        start, shares = np.full((2, 2), 2), np.array([0.5, 0.1])
        first = raise_bits(shares, start, promise, (2, 4), total=0.6 * 3 / 16 + 0.1 * 2 / 16)
        assert first.tolist() == [[2, 2], [4, 4]]
        assert raise_bits(shares, start, promise, (2, 4), total=1.0).tolist() == [[4, 4], [4, 4]]

    def test_what_is_negligible_is_not_paid_for(self) -> None:
        promise = np.array([[[0.0, 0.0], [-1.0, -0.1]], [[0.0, 0.0], [0.0, 0.0]]])
        start, shares = np.full((2, 2), 2), np.array([0.5, 0.5])
        assert raise_bits(shares, start, promise, (2, 4), total=1.0).tolist() == [[4, 2], [4, 2]]
        assert raise_bits(shares, start, promise, (2, 4), total=1.0, negligible=0.2).tolist() == [[4, 2], [2, 2]]
        dear = np.array([1.0, 0.2])
        for skip in (True, False):  # the first cannot be paid
            raised = raise_bits(dear, start, 20 * promise, (2, 4), total=1.2 * 3 / 16 + 0.02, skip=skip)
            assert raised.tolist() == [[2, 2], [4 if skip else 2, 2]]

    @given(
        arrays(np.float64, 3, elements=st.floats(0.0, 1.0)),
        arrays(np.int64, (3, 2), elements=st.sampled_from([2, 4, 8, 16])),
        arrays(np.float64, (2, 4, 3), elements=st.floats(-2.0, 2.0)),
        st.floats(0.0, 1.0),
    )
    def test_no_bits_fall_and_the_total_is_kept(
        self, shares: NDArray[np.float64], bits: NDArray[np.int64], promise: NDArray[np.float64], fraction: float
    ) -> None:
        size = EntrySize()
        low, high = shares @ size.relative(bits), shares.sum()
        total = low + fraction * (high - low)
        raised = raise_bits(shares, bits, promise, (2, 4, 8, 16), total=total)
        assert (raised >= bits).all()
        assert shares @ size.relative(raised) <= total + 1e-9


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"per_cache": True}, "per_cache: bits per KV cache are chosen among two widths or more"),
        ({"widths": (8, 4), "granularity": "layer"}, "widths go with granularity: head and page: 1 alone"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_work(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=f"allocator b: {complaint}"):
        Baklava(name="b", **wrong)
