"""Needle in a haystack: RULER's `niah` family (arXiv 2404.06654, section 3)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from baklava.errors import UserError
from baklava.tasks.base import Count, CountTokens, Sample, Task
from baklava.tasks.haystack import hide, in_noise

HEADER = (
    "{some} special magic {kind} hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {what} afterwards.\n"
)


@cache
def _words() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Adjectives and nouns that make word keys, in a fixed order."""
    from wonderwords import RandomWord
    from wonderwords.random_word import Defaults

    words = RandomWord(adjectives=Defaults.ADJECTIVES, nouns=Defaults.NOUNS)
    adjectives = words.filter(include_categories=["adjectives"])
    nouns = words.filter(include_categories=["nouns"])
    return tuple(sorted(set(adjectives))), tuple(sorted(set(nouns)))


def word_keys(n: int, rng: random.Random) -> list[str]:
    """`n` different keys of the form adjective-noun."""
    adjectives, nouns = _words()
    keys: dict[str, None] = {}
    while len(keys) < n:
        keys[f"{rng.choice(adjectives)}-{rng.choice(nouns)}"] = None
    return list(keys)


def _enumerate(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + ", and " + keys[-1]


def needle(key: str, value: str) -> str:
    return f"One of the special magic numbers for {key} is: {value}."


def header(*, plural: bool) -> str:
    if plural:
        return HEADER.format(some="Some", kind="numbers are", what="numbers")
    return HEADER.format(some="A", kind="number is", what="number")


def question(keys: list[str], *, plural: bool) -> tuple[str, str]:
    """The question about `keys` and the beginning of its answer."""
    asked = _enumerate(keys)
    if plural:
        return (
            f"What are all the special magic numbers for {asked} mentioned in the provided text?",
            f" The special magic numbers for {asked} mentioned in the provided text are",
        )
    return (
        f"What is the special magic number for {asked} mentioned in the provided text?",
        f" The special magic number for {asked} mentioned in the provided text is",
    )


def values_of(asked: list[str], pairs: list[tuple[str, str]]) -> tuple[str, ...]:
    """Values of the asked keys in the order of the text; RULER's scores do not look at the order."""
    return tuple(value for key, value in pairs if key in asked)


def answer(values: tuple[str, ...]) -> str:
    return " " + ", ".join(values) + "."


@dataclass(frozen=True, kw_only=True)
class NeedleInHaystack(Task):
    """Find the numbers that belong to the asked keys.

    Word keys, 7-digit values, `noise` haystack. RULER's tasks are settings of the three counts:
    `niah_single_1` 1/1/1, `niah_multikey_1` 4/1/1, `niah_multivalue` 1/4/1, `niah_multiquery` 4/1/4.
    """

    family: ClassVar[str] = "niah"

    n_keys: Count = 1
    n_values: Count = 1
    n_queries: Count = 1
    n_digits: Count = 7

    def __post_init__(self) -> None:
        if self.n_queries > self.n_keys:
            raise UserError(f"n_queries ({self.n_queries}) must not be more than n_keys ({self.n_keys})")

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        rng = self.random_stream(split=split, seed=seed, index=index)
        keys = word_keys(self.n_keys, rng)
        low, high = 10 ** (self.n_digits - 1), 10**self.n_digits - 1
        pairs = [(key, str(rng.randint(low, high))) for key in keys for _ in range(self.n_values)]
        rng.shuffle(pairs)
        needles = [needle(key, value) for key, value in pairs]
        asked = rng.sample(keys, self.n_queries)
        plural = self.n_queries * self.n_values > 1
        asked_text, answer_prefix = question(asked, plural=plural)
        places_seed = rng.getrandbits(64)

        def context(n_lines: int) -> str:
            return header(plural=plural) + hide(needles, n_lines, random.Random(places_seed)) + "\n"

        sample = Sample(
            index=index,
            context="",
            question=asked_text,
            answer_prefix=answer_prefix,
            answers=values_of(asked, pairs),
            max_new_tokens=self.max_new_tokens,
        )
        return in_noise(sample, context, task=self.name, length=length, count_tokens=count_tokens)

    def metric_name(self) -> str:
        return "string_match_all"

    def reference_answer(self, sample: Sample) -> str:
        return answer(sample.answers)
