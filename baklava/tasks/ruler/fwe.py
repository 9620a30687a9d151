"""Frequent words extraction: RULER's `fwe` (arXiv 2404.06654, section 3)."""

from __future__ import annotations

import math
import random
import string
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from baklava.tasks.base import Count, CountTokens, Sample, Task
from baklava.tasks.text.fit_length import fill_context

HEADER = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. "
)
QUESTION = (
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
ANSWER_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"

NOISE = "..."  # the most frequent of all
N_ASKED = 3
TOKENS_PER_WORD = 50  # RULER's vocabulary has one word per 50 tokens of the prompt


def draw_coded_words(n: int, n_letters: int, rng: random.Random) -> list[str]:
    """Draw `n` different words of random letters."""
    words: dict[str, None] = {}
    while len(words) < n:
        words["".join(rng.choices(string.ascii_lowercase, k=n_letters))] = None
    return list(words)


@dataclass(frozen=True, kw_only=True)
class FrequentWords(Task):
    """Name the three most frequent coded words of a text whose word frequencies follow a zeta law.

    In a text for `n` words, the word of rank `k` occurs `n * k ** -alpha / zeta(alpha)` times, rounded down; dots have
    rank 1. A text so short that the third and the fourth word would tie, as RULER allows, is refused.
    """

    family: ClassVar[str] = "fwe"

    alpha: Annotated[float, Field(gt=1.0, le=4.0)] = 2.0
    n_letters: Annotated[int, Field(ge=4, le=32)] = 6
    max_new_tokens: Count = 50

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        from scipy.special import zeta

        rng = self.random_stream(split=split, seed=seed, index=index)
        order, seed_of_words = rng.getrandbits(64), rng.getrandbits(64)
        scale = float(zeta(self.alpha))
        min_words, n_ranks = self._shortest_text(scale)
        n_words = max(n_ranks, (length - self.max_new_tokens) // TOKENS_PER_WORD) - 1
        vocabulary = [NOISE, *draw_coded_words(n_words, self.n_letters, random.Random(seed_of_words))]
        shares = [rank**-self.alpha / scale for rank in range(1, len(vocabulary) + 1)]

        def context(n: int) -> str:
            counts = [int((min_words + n) * share) for share in shares]
            text = [word for word, count in zip(vocabulary, counts, strict=True) for _ in range(count)]
            random.Random(order).shuffle(text)
            return HEADER + " ".join(text) + "\n"

        sample = Sample(
            index=index,
            context="",
            question=QUESTION,
            answer_prefix=ANSWER_PREFIX,
            answers=tuple(vocabulary[1 : N_ASKED + 1]),
            max_new_tokens=self.max_new_tokens,
        )
        return fill_context(
            sample, context, unit="further words", task=self.name, length=length, count_tokens=count_tokens
        )

    def _shortest_text(self, scale: float) -> tuple[int, int]:
        """The smallest number of words with which the third word beats the fourth, and the number of their ranks."""
        third, fourth = ((N_ASKED + i) ** -self.alpha / scale for i in (1, 2))
        min_words = math.ceil(1 / (third - fourth))
        return min_words, max(N_ASKED + 2, int((min_words / scale) ** (1 / self.alpha)))

    def metric_name(self) -> str:
        return "string_match_all"

    def reference_answer(self, sample: Sample) -> str:
        return " " + " ".join(sample.answers) + "."
