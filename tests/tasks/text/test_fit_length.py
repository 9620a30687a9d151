"""A text grows until one more unit would be too long, or the reason why it cannot is given."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from baklava.errors import UserError
from baklava.tasks.base import Sample
from baklava.tasks.text.fit_length import fill_context, largest_fitting


@given(st.integers(0, 50), st.lists(st.integers(0, 40), min_size=1, max_size=300), st.integers(-5, 3000))
def test_is_the_largest_number_that_fits(bare: int, sizes: list[int], room: int) -> None:
    """Units of any sizes, in turn."""

    def size(n: int) -> int:
        full, rest = divmod(n, len(sizes) + 1)
        return bare + full * (sum(sizes) + 1) + sum(sizes[:rest])

    n = largest_fitting(lambda n: "x" * size(n), room=room, count_tokens=len)
    if size(0) > room:
        assert n == -1
    else:
        assert size(n) <= room < size(n + 1)


def test_takes_few_looks_at_a_long_text() -> None:
    rng = random.Random(0)
    words = ["w" * rng.randint(1, 12) for _ in range(200_000)]
    looks = []

    def build(n: int) -> str:
        looks.append(n)
        return " ".join(words[:n])

    n = largest_fitting(build, room=500_000, count_tokens=len)
    assert len(" ".join(words[:n])) <= 500_000 < len(" ".join(words[: n + 1]))
    assert len(looks) < 25


def text_of(n_words: int, line_words: int) -> Callable[[int], str]:
    """A context of `n_words` words besides noise lines of `line_words` words."""
    return lambda n_lines: "word " * (n_words + n_lines * line_words)


def count_words(text: str) -> int:
    return len(text.split())


def fill(context: Callable[[int], str], *, length: int, max_new_tokens: int) -> int:
    """Number of words of the filled sample, its answer included."""
    sample = Sample(index=0, context="", question="", answer_prefix="", answers=("a",), max_new_tokens=max_new_tokens)
    filled = fill_context(sample, context, unit="noise lines", task="t", length=length, count_tokens=count_words)
    return count_words(filled.prompt) + max_new_tokens


@given(
    n_words=st.integers(0, 100),
    line_words=st.integers(1, 30),
    length=st.integers(-5, 1500),
    max_new_tokens=st.integers(1, 130),
)
@example(n_words=10, line_words=1, length=11, max_new_tokens=1)
def test_gives_a_length_in_range_or_says_that_there_is_none(
    n_words: int, line_words: int, length: int, max_new_tokens: int
) -> None:
    context = text_of(n_words, line_words)
    totals = [n_words + n * line_words + max_new_tokens for n in range(max(length, 0) + 1)]
    if any(0.9 * length <= total <= length for total in totals):
        assert fill(context, length=length, max_new_tokens=max_new_tokens) == max(n for n in totals if n <= length)
    else:
        with pytest.raises(UserError, match="task t: "):
            fill(context, length=length, max_new_tokens=max_new_tokens)


def test_too_short_names_the_length_that_is_needed() -> None:
    with pytest.raises(UserError, match=r"task t: length 40 is too short: .* ask for a length of at least 42"):
        fill(text_of(12, 5), length=40, max_new_tokens=30)


def test_too_coarse_says_what_came_nearest() -> None:
    with pytest.raises(UserError, match=r"no sample between 0\.9 and 1\.0 of length 60: 0 noise lines .*42"):
        fill(text_of(12, 50), length=60, max_new_tokens=30)
