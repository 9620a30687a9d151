"""Accuracy over named classes, as in LongBench (arXiv 2308.14508, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

from baklava.errors import UserError


def classification(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 / (number of classes that the prediction names) where the right one is among them, else 0.

    A named class that is a part of the right one's name does not count. Raises `UserError` without classes.
    """
    if not all_classes:
        raise UserError("all_classes: the metric classification needs the names of all classes")
    return max(_one(prediction, answer, all_classes) for answer in answers)


def _one(prediction: str, answer: str, all_classes: Sequence[str]) -> float:
    named = [name for name in all_classes if name in prediction]
    place = 0
    while place < len(named):
        if named[place] in answer and named[place] != answer:
            del named[place]
        place += 1  # also after a deletion: the published script skips the class that follows, and scores must compare
    return 1.0 / len(named) if answer in named else 0.0
