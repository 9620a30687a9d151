"""LongProc's score of a route: how far it is right (arXiv 2501.05414)."""

from __future__ import annotations

from collections.abc import Sequence

START, END = "<Route>", "</Route>"


def route(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """Fraction of the right lines, `answers` in their order, that the prediction has before its first other line.

    The route begins after `<Route>`, or with the prediction, and ends at `</Route>`. The published partial accuracy
    counts the first wrong line, too.
    """
    lines = prediction.rpartition(START)[2].partition(END)[0].strip().split("\n")
    n_right = 0
    for line, answer in zip(lines, answers, strict=False):
        if line.strip() != answer:
            break
        n_right += 1
    return n_right / len(answers)
