"""Accuracy over named classes, as in LongBench (arXiv 2308.14508, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

from baklava.errors import UserError


def classification(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 / (number of classes that the prediction names) if the right one is among them, otherwise 0.

    A class whose name is contained in the right one's does not count. Raises `UserError` without classes.
    """
    if not all_classes:
        raise UserError("all_classes: the metric classification needs the names of all classes")
    return max(_score(prediction, answer, all_classes) for answer in answers)


def _score(prediction: str, answer: str, all_classes: Sequence[str]) -> float:
    named = [name for name in all_classes if name in prediction]
    index = 0
    while index < len(named):
        if named[index] in answer and named[index] != answer:
            del named[index]
        index += 1  # even after a deletion: the published script skips the next class, and scores must be comparable
    return 1.0 / len(named) if answer in named else 0.0
