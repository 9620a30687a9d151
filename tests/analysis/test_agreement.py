"""Agreement of rankings: what made-up ones of known agreement come out as."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baklava.analysis.agreement import rank_agreement, top_overlap


def test_the_top_is_a_fraction_of_all_kv_caches() -> None:
    first = np.arange(20.0)
    second = np.where(first >= 17, -first, first)  # the best three of six become the worst
    assert top_overlap(np.stack([first, second]), top=0.3) == pytest.approx(3 / 6)
    assert top_overlap(np.stack([first, second]), top=0.15) == 0.0
    assert top_overlap(np.stack([first, second]), top=1.0) == 1.0


def test_equal_importance_everywhere_has_no_ranking() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(rank_agreement(np.ones((3, 4, 2))))
        assert rank_agreement(np.stack([np.ones(6), np.arange(6), np.arange(6)])) == pytest.approx(1.0)


@given(n_prompts=st.integers(1, 3), shape=st.tuples(st.integers(1, 2), st.integers(1, 2)), top=st.floats(0.01, 1))
def test_few_prompts_and_kv_caches_agree_by_a_number_or_not_at_all(
    n_prompts: int, shape: tuple[int, int], top: float
) -> None:
    rankings = np.random.default_rng(0).random((n_prompts, *shape))
    assert np.isnan(rank_agreement(rankings)) == (n_prompts == 1 or shape == (1, 1))
    assert np.isnan(top_overlap(rankings, top=top)) == (n_prompts == 1)
    if n_prompts > 1 and shape == (1, 1):
        assert top_overlap(rankings, top=top) == 1.0
