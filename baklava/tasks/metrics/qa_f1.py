"""F1 over the words of an answer, as in SQuAD and LongBench (arXiv 2308.14508, section 4)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def token_f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over two bags of tokens; 0 if they share none."""
    common = (Counter(prediction) & Counter(answer)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(answer)
    return 2 * precision * recall / (precision + recall)


def split_words(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation and articles; `state-of-the-art` is one, as in SQuAD."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def qa_f1(prediction: str, answer: str) -> float:
    """F1 over normalised words."""
    return token_f1(split_words(prediction), split_words(answer))
