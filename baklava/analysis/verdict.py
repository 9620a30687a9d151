"""The verdict on a method in words, the same in every table, figure and file: how far it compresses without loss."""

from __future__ import annotations

import math
from collections.abc import Mapping

TIE = 1e-9  # rounding error that a difference equal to the margin may have
NO_RATIO = "no tested ratio"


def explain_no_verdict(full: float, n: Mapping[str, int], *, margin: float, confidence: float) -> str | None:
    """Why nothing can be said to be lossless, or None where it can.

    `full` is the full cache's score, `n` the number of samples per task, or of the contexts that they share. Where the
    full cache scores no more than the margin, a method that answers nothing is "lossless". Where samples are few, all
    may agree by chance: the fraction that may still differ is `1 - ((1 - confidence) / 2) ** (1 / n)`, and each of them
    may lose the full cache's score.
    """
    if scores_nothing(full, margin):
        return f"full cache scores {full:.2f}: no verdict"
    total = len(n) * min(n.values())  # tasks weigh alike, so the one with the fewest samples bounds them all
    if not margin:
        return None  # nothing but the same answers is lossless
    needed = math.ceil(math.log((1.0 - confidence) / 2.0) / math.log1p(-margin / full))
    return f"n = {total}: undecided (needs {needed})" if total < needed else None


def scores_nothing(full: float, margin: float) -> bool:
    """Whether the full cache scores so little that all of it could be lost within the margin."""
    return full <= margin + TIE


def in_points(difference: float, low: float, high: float) -> str:
    """A difference of scores and its interval, in points (hundredths)."""
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def describe_rule(margin: float, confidence: float) -> str:
    """What the largest lossless ratio is."""
    return (
        f"largest r up to which, at every tested ratio, the {100 * confidence:g}% interval of the paired difference to "
        f"the full cache stays above {-100 * margin:g} points"
    )
