"""Needles between lines of noise."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baklava.tasks.text.noise import NOISE_LINE, hide_in_noise, spread_positions


@given(st.lists(st.integers(0, 9), max_size=5), st.integers(0, 12), st.integers())
def test_holds_every_needle_in_order_and_all_noise(numbers: list[int], n_lines: int, seed: int) -> None:
    needles = [f"needle {number}" for number in numbers]
    lines = hide_in_noise(needles, n_lines, random.Random(seed)).split("\n") if needles or n_lines else []
    assert [line for line in lines if line != NOISE_LINE] == needles
    assert lines.count(NOISE_LINE) == n_lines


def test_every_position_is_possible() -> None:
    positions = {hide_in_noise(["x"], 3, random.Random(seed)).split("\n").index("x") for seed in range(100)}
    assert positions == {0, 1, 2, 3}


@pytest.mark.parametrize("every", [1, 2, 3])  # as where tasks take turns
def test_few_spread_samples_leave_no_depth_out(every: int) -> None:
    depths = sorted(spread_positions(1, 999, every * index)[0] for index in range(12))
    gaps = [after - before for before, after in pairwise([0, *depths, 999])]
    assert max(gaps) < 200


def test_the_spread_needles_of_a_sample_are_equally_far_apart() -> None:
    assert [spread_positions(4, 399, index) for index in (0, 1)] == [[0, 100, 200, 300], [47, 147, 247, 347]]
