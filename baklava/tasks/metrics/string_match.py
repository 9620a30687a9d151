"""RULER's metrics: does the answer occur in the prediction? (arXiv 2404.06654, section 4)."""

from __future__ import annotations

from collections.abc import Sequence


def string_match_all(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """Fraction of the answers that occur in the prediction, ignoring case."""
    text = prediction.lower()
    return sum(answer.lower() in text for answer in answers) / len(answers)


def string_match_part(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 where any of the answers occurs in the prediction, ignoring case, else 0."""
    text = prediction.lower()
    return float(any(answer.lower() in text for answer in answers))
