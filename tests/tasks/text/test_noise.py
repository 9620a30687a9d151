"""Noise is filled in to the asked length, or the reason why not is given."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from baklava.errors import UserError
from baklava.tasks.text.noise import NOISE_LINE, fit, hide, max_noise_lines


def text_of(n_words: int, line_words: int) -> Callable[[int], str]:
    """A prompt of `n_words` words besides noise lines of `line_words` words."""
    return lambda n_lines: "word " * (n_words + n_lines * line_words)


def words(text: str) -> int:
    return len(text.split())


class TestHide:
    @given(st.lists(st.integers(0, 9), max_size=5), st.integers(0, 12), st.integers())
    def test_holds_every_needle_in_order_and_all_noise(self, numbers: list[int], n_lines: int, seed: int) -> None:
        needles = [f"needle {number}" for number in numbers]
        lines = hide(needles, n_lines, random.Random(seed)).split("\n") if needles or n_lines else []
        assert [line for line in lines if line != NOISE_LINE] == needles
        assert lines.count(NOISE_LINE) == n_lines

    def test_every_place_is_possible(self) -> None:
        places = {hide(["x"], 3, random.Random(seed)).split("\n").index("x") for seed in range(100)}
        assert places == {0, 1, 2, 3}


class TestMostNoiseLines:
    @given(st.integers(0, 100), st.integers(1, 30), st.integers(-5, 2000))
    def test_is_the_largest_number_that_fits(self, n_words: int, line_words: int, room: int) -> None:
        fitting = [n for n in range(room + 2) if n_words + n * line_words <= room]
        found = max_noise_lines(text_of(n_words, line_words), room=room, count_tokens=words)
        assert found == max(fitting, default=-1)


class TestFit:
    @given(
        n_words=st.integers(0, 100),
        line_words=st.integers(1, 30),
        length=st.integers(-5, 1500),
        max_new_tokens=st.integers(1, 130),
    )
    @example(n_words=10, line_words=1, length=11, max_new_tokens=1)
    def test_gives_a_length_in_range_or_says_that_there_is_none(
        self, n_words: int, line_words: int, length: int, max_new_tokens: int
    ) -> None:
        build = text_of(n_words, line_words)
        totals = (n_words + n * line_words + max_new_tokens for n in range(max(length, 0) + 1))
        possible = any(0.9 * length <= total <= length for total in totals)
        arguments = {"task": "t", "length": length, "max_new_tokens": max_new_tokens, "count_tokens": words}
        if possible:
            total = words(build(fit(build, **arguments))) + max_new_tokens
            assert 0.9 * length <= total <= length
        else:
            with pytest.raises(UserError, match="task t: "):
                fit(build, **arguments)

    def test_too_short_names_the_length_that_is_needed(self) -> None:
        with pytest.raises(UserError, match=r"task t: length 40 is too short: .* ask for a length of at least 42"):
            fit(text_of(12, 5), task="t", length=40, max_new_tokens=30, count_tokens=words)

    def test_too_coarse_says_what_came_nearest(self) -> None:
        with pytest.raises(UserError, match=r"no sample between 0\.9 and 1\.0 of length 60: 0 noise lines .*42"):
            fit(text_of(12, 50), task="t", length=60, max_new_tokens=30, count_tokens=words)
