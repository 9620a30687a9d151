"""Similarity of a line of code, as in LongBench (arXiv 2308.14508, section 4)."""

from __future__ import annotations

from difflib import SequenceMatcher

_NOT_CODE = ("`", "#", "//")


def code_similarity(prediction: str, answer: str) -> float:
    """Similarity, in hundredths, of the prediction's first line that is no comment or fence.

    The published scores are fuzzywuzzy's `ratio`, which with the requirements of LongBench is difflib's. RapidFuzz, and
    fuzzywuzzy with python-Levenshtein, count edits instead and differ by some hundredths.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in _NOT_CODE)), "")
    if not line or not answer:
        return float(line == answer)
    return round(100 * SequenceMatcher(None, line, answer).ratio()) / 100
