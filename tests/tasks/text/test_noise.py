"""Needles between lines of noise."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from baklava.tasks.text.noise import NOISE_LINE, hide_in_noise


@given(st.lists(st.integers(0, 9), max_size=5), st.integers(0, 12), st.integers())
def test_holds_every_needle_in_order_and_all_noise(numbers: list[int], n_lines: int, seed: int) -> None:
    needles = [f"needle {number}" for number in numbers]
    lines = hide_in_noise(needles, n_lines, random.Random(seed)).split("\n") if needles or n_lines else []
    assert [line for line in lines if line != NOISE_LINE] == needles
    assert lines.count(NOISE_LINE) == n_lines


def test_every_position_is_possible() -> None:
    positions = {hide_in_noise(["x"], 3, random.Random(seed)).split("\n").index("x") for seed in range(100)}
    assert positions == {0, 1, 2, 3}
