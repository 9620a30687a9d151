"""Frequent words, as RULER words them."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baklava.tasks import Sample
from baklava.tasks.ruler.fwe import FrequentWords

TASK = FrequentWords(name="fwe")


def words(text: str) -> int:
    return len(text.split())


def draw(task: FrequentWords = TASK, *, index: int = 0, length: int = 1024) -> Sample:
    return task.sample(split="evaluation", seed=0, index=index, length=length, count_tokens=words)


def test_reads_as_in_ruler() -> None:
    sample = draw()
    header = (
        "Read the following coded text and track the frequency of each coded word. "
        "Find the three most frequently appeared coded words. "
    )
    assert sample.context.startswith(header)
    assert sample.context.endswith("\n")
    assert set(re.sub("[a-z]{6}", "w", sample.context.removeprefix(header).removesuffix("\n")).split()) == {"w", "..."}
    assert sample.question == (
        "Question: Do not provide any explanation. Please ignore the dots '....'. "
        "What are the three most frequently appeared words in the above coded text?"
    )
    assert sample.answer_prefix == (
        " Answer: According to the coded text above, the three most frequently appeared words are:"
    )


def test_frequencies_fall_as_the_zeta_law() -> None:
    sample = draw(length=8192)
    counts = [n for _, n in Counter(sample.context.split()[21:]).most_common()]
    n = counts[0] * 1.6449  # zeta(2)
    for rank in range(1, 11):
        assert counts[rank - 1] == pytest.approx(n / 1.6449 / rank**2, abs=1.01)


@settings(max_examples=30)
@given(index=st.integers(0, 2**40), length=st.integers(250, 4000), alpha=st.floats(1.5, 3.5))
def test_the_answers_are_the_three_most_frequent_in_order(index: int, length: int, alpha: float) -> None:
    sample = draw(FrequentWords(name="fwe", alpha=alpha, max_new_tokens=20), index=index, length=max(length, 900))
    counts = Counter(sample.context.split()[21:]).most_common(5)
    assert counts[0][0] == "..."
    assert tuple(word for word, _ in counts[1:4]) == sample.answers
    assert counts[3][1] > counts[4][1]
