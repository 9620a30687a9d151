"""RULER's metrics."""

from __future__ import annotations

import pytest

from baklava.tasks.metrics.string_match import string_match_all, string_match_part


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("123, 456", ("123", "456"), 1.0),
        ("456 and then 123", ("123", "456"), 1.0),
        ("123", ("123", "456"), 0.5),
        ("1, 2, 3", ("1", "2", "3", "4"), 0.75),
        ("12 3", ("123",), 0.0),
        ("x123y", ("123",), 1.0),
        ("they are abcde", ("ABCDE",), 1.0),
        ("THEY ARE ABCDE", ("abcde",), 1.0),
        ("", ("123",), 0.0),
    ],
)
def test_all_is_the_part_of_the_answers_that_occur(prediction: str, answers: tuple[str, ...], score: float) -> None:
    assert string_match_all(prediction, answers) == score


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("It was Denver.", ("denver broncos", "Denver"), 1.0),
        ("the broncos", ("Denver Broncos", "Denver"), 0.0),
        ("", ("Denver",), 0.0),
    ],
)
def test_part_asks_for_any_answer(prediction: str, answers: tuple[str, ...], score: float) -> None:
    assert string_match_part(prediction, answers) == score
