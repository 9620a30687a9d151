"""OpenAI's MRCR: how much of the asked text was returned (https://huggingface.co/datasets/openai/mrcr)."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from baklava.errors import UserError


def mrcr(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """`difflib`'s ratio of the prediction and the answer; 0 where the prediction lacks the asked beginning.

    That is the one in `all_classes`; it does not count in the ratio. Raises `UserError` without it.
    """
    if len(all_classes) != 1:
        raise UserError("all_classes: the metric mrcr needs the text that the answer was asked to begin with")
    (beginning,) = all_classes
    if not prediction.startswith(beginning):
        return 0.0
    returned = prediction.removeprefix(beginning)
    return max(SequenceMatcher(None, returned, answer.removeprefix(beginning)).ratio() for answer in answers)
