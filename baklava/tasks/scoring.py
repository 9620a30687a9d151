"""String metrics, each in [0, 1]."""

from __future__ import annotations


def string_match_all(prediction: str, answers: tuple[str, ...]) -> float:
    """Fraction of the answers that occur in the prediction, ignoring case (RULER's `string_match_all`)."""
    text = prediction.lower()
    return sum(answer.lower() in text for answer in answers) / len(answers)
