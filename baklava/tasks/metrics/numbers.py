"""LongBench's metrics of the synthetic sets (arXiv 2308.14508, section 4): which numbers does the prediction name?"""

from __future__ import annotations

import re
from collections.abc import Callable

from baklava.errors import UserError


def count(prediction: str, answer: str) -> float:
    """Fraction of the numbers in the prediction that equal the answer."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def make_retrieval(word: str) -> Callable[[str, str], float]:
    """Make `count` for answers such as `Paragraph 12`, where `word` is `Paragraph `."""

    def score(prediction: str, answer: str) -> float:
        right = re.search(rf"{word}(\d+)", answer)
        if right is None:
            raise UserError(f"answers: expected `{word}` with a number after it, got {answer!r}")
        return count(prediction, right[1])

    score.__doc__ = f"Fraction of the numbers in the prediction that are the one after `{word}` in the answer."
    return score
