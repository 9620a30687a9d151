"""Common words extraction: RULER's `cwe` (arXiv 2404.06654, section 3)."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import ClassVar

from baklava.errors import DataError, UserError
from baklava.system.files import expand_home
from baklava.tasks.base import Count, CountTokens, Sample, Task
from baklava.tasks.text.fit_length import check_length, largest_fitting
from baklava.tasks.text.rows import read_text
from baklava.tasks.text.words import load_words

HEADER = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
QUESTION = "Question: What are the {n} most common words in the above list?"
ANSWER_PREFIX = " Answer: The top {n} words that appear most often in the list are:"

# Below this length RULER repeats words less often and shortens the solved example.
LONG = 4096


@dataclass(frozen=True)
class Repeats:
    """How often common words and other words occur in a list."""

    common: int
    other: int


def number_words(words: Sequence[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, start=1))


def write_word_list(common: Sequence[str], others: Sequence[str], repeats: Repeats, rng: random.Random) -> str:
    """Write common and other words in random order, numbered."""
    listed = [*common] * repeats.common + [*others] * repeats.other
    rng.shuffle(listed)
    return number_words(listed)


@cache
def _load_all_words(more: str | None) -> tuple[str, ...]:
    """Load nouns, adjectives and verbs, and then other words of the user's file."""
    known = sorted({*load_words("nouns"), *load_words("adjectives"), *load_words("verbs")})
    return tuple(dict.fromkeys([*known, *(_read_words(expand_home(more)) if more else ())]))


def _read_words(path: Path) -> list[str]:
    """Read RULER's english_words.json, an object whose values are words, or a text with one word per line."""
    text = read_text(path)
    try:
        listed = list(json.loads(text).values()) if path.suffix == ".json" else text.split()
    except (ValueError, AttributeError, RecursionError):
        listed = []
    if not listed or not all(isinstance(word, str) for word in listed):
        raise DataError(f"{path}: expected an object whose values are words, or a text file with one word a line")
    return listed


@dataclass(frozen=True, kw_only=True)
class CommonWords(Task):
    """Name the words that are repeated most in a numbered list, after a solved example.

    From `LONG` tokens on, common words occur `common_repeats` times and others `other_repeats` times; in shorter lists
    6 times and once, as in RULER. There are enough words for about 120,000 tokens; `more_words` names a file with more,
    such as RULER's english_words.json. RULER then takes words of that file only.
    """

    family: ClassVar[str] = "cwe"

    n_common: Count = 10
    common_repeats: Count = 30
    other_repeats: Count = 3
    more_words: str | None = None
    max_new_tokens: Count = 120

    def __post_init__(self) -> None:
        if self.common_repeats <= self.other_repeats:
            raise UserError(
                f"common_repeats ({self.common_repeats}) must be more than other_repeats ({self.other_repeats})"
            )

    def check(self) -> None:
        if self.more_words is not None and not expand_home(self.more_words).is_file():
            raise UserError(
                f"task {self.name}: more_words: no such file: {self.more_words}; "
                "give RULER's english_words.json, or leave it out"
            )

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        rng = self.random_stream(split=split, seed=seed, index=index)
        drawn = list(_load_all_words(self.more_words))
        rng.shuffle(drawn)
        common, others = drawn[: self.n_common], drawn[self.n_common :]
        question, answer_prefix = QUESTION.format(n=self.n_common), ANSWER_PREFIX.format(n=self.n_common)
        short = length < LONG
        repeats = Repeats(6, 1) if short else Repeats(self.common_repeats, self.other_repeats)
        example = self._example(rng, Repeats(3, 1), 20) if short else self._example(rng, Repeats(10, 3), 40)
        order = rng.getrandbits(64)

        def context(n: int) -> str:
            # The search for the length may ask for more words than there are.
            chosen = list(islice(cycle(others), n))
            return example + HEADER + write_word_list(common, chosen, repeats, random.Random(order)) + "\n"

        sample = Sample(
            index=index,
            context="",
            question=question,
            answer_prefix=answer_prefix,
            answers=tuple(common),
            max_new_tokens=self.max_new_tokens,
        )
        prompt_end = question + answer_prefix
        n = largest_fitting(
            lambda n: context(n) + prompt_end, room=length - self.max_new_tokens, count_tokens=count_tokens
        )
        filled = replace(sample, context=context(max(0, n)))
        check_length(filled, n, unit="other words", task=self.name, length=length, count_tokens=count_tokens)
        if n > len(others):
            raise UserError(
                f"task {self.name}: length {length} takes more than the {len(drawn)} words there are; set "
                f"tasks.{self.name}.more_words to a file with more, such as RULER's english_words.json"
            )
        return filled

    def _example(self, rng: random.Random, repeats: Repeats, n_words: int) -> str:
        drawn = rng.sample(_load_all_words(self.more_words), max(n_words, self.n_common))
        common, others = drawn[: self.n_common], drawn[self.n_common :]
        listed = write_word_list(common, others, repeats, rng)
        asked = QUESTION.format(n=self.n_common) + ANSWER_PREFIX.format(n=self.n_common)
        return f"{HEADER}{listed}\n{asked} {number_words(common)}\n"

    def metric_name(self) -> str:
        return "string_match_all"

    def reference_answer(self, sample: Sample) -> str:
        return " " + number_words(sample.answers)
