"""ROUGE-L as LongBench reports it (arXiv 2308.14508, section 4): the F of the `rouge` package, for English and Chinese.

`rouge-score` gives other values: it stems, splits sentences at new lines, and counts repeated words. The published
scores are those of `rouge`, which splits at full stops and takes the union of the longest common subsequences as a set.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from baklava.tasks.metrics.chinese import cut_segments


def rouge_l(prediction: str, answer: str) -> float:
    """F of ROUGE-L over words; 0 if either text has no words, as published."""
    from rouge import Rouge

    if not prediction.replace(".", "") or not answer.replace(".", ""):
        return 0.0
    with _deep_recursion(prediction, answer):
        [score] = Rouge(metrics=["rouge-l"], stats=["f"]).get_scores([prediction], [answer])
    return float(score["rouge-l"]["f"])


def rouge_l_zh(prediction: str, answer: str) -> float:
    """F of ROUGE-L over Chinese words."""
    return rouge_l(" ".join(cut_segments(prediction)), " ".join(cut_segments(answer)))


@contextmanager
def _deep_recursion(*texts: str) -> Iterator[None]:
    """Raise the recursion limit: `rouge` recurses once per word, and the published script scores 0 at the limit."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + sum(len(text.split()) for text in texts))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
