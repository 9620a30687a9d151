"""Needle in a haystack: RULER's `niah` family (arXiv 2404.06654, section 3)."""

from __future__ import annotations

import random
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal
from uuid import UUID

from baklava.errors import UserError
from baklava.tasks.base import Count, CountTokens, Sample, Task
from baklava.tasks.text.essay import DEPTHS, check_essay, draw_positions_at_depths, read_essay_words, split_sentences
from baklava.tasks.text.noise import NOISE_LINE, draw_positions, insert_needles, spread_positions
from baklava.tasks.text.questions import fill_shared_context, split_index
from baklava.tasks.text.words import load_words

# What keys and values are, in RULER's words.
Kind = Literal["words", "numbers", "uuids"]

HEADER = (
    "{some} special magic {kind} hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {what} afterwards.\n"
)


def draw_word_keys(n: int, rng: random.Random) -> list[str]:
    """Draw `n` different keys of the form adjective-noun."""
    adjectives, nouns = load_words("adjectives"), load_words("nouns")
    keys: dict[str, None] = {}
    while len(keys) < n:
        keys[f"{rng.choice(adjectives)}-{rng.choice(nouns)}"] = None
    return list(keys)


def draw_value(kind: Kind, rng: random.Random, *, n_digits: int = 7) -> str:
    """Draw a key or a value."""
    if kind == "words":
        return draw_word_keys(1, rng)[0]
    if kind == "uuids":
        return str(UUID(int=rng.getrandbits(128), version=4))
    return str(rng.randint(10 ** (n_digits - 1), 10**n_digits - 1))


def draw_keys(n: int, kind: Kind, rng: random.Random, *, n_digits: int = 7) -> list[str]:
    """Draw `n` different keys."""
    keys: dict[str, None] = {}
    while len(keys) < n:
        keys[draw_value(kind, rng, n_digits=n_digits)] = None
    return list(keys)


def _join_names(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + ", and " + keys[-1]


def write_needle(key: str, value: str, *, kind: Kind = "numbers") -> str:
    return f"One of the special magic {kind} for {key} is: {value}."


def write_header(*, plural: bool, kind: Kind = "numbers") -> str:
    if plural:
        return HEADER.format(some="Some", kind=f"{kind} are", what=kind)
    return HEADER.format(some="A", kind=f"{kind[:-1]} is", what=kind[:-1])


def write_question(keys: list[str], *, plural: bool, kind: Kind = "numbers") -> tuple[str, str]:
    """Write the question about `keys` and the beginning of its answer."""
    asked = _join_names(keys)
    if plural:
        return (
            f"What are all the special magic {kind} for {asked} mentioned in the provided text?",
            f" The special magic {kind} for {asked} mentioned in the provided text are",
        )
    return (
        f"What is the special magic {kind[:-1]} for {asked} mentioned in the provided text?",
        f" The special magic {kind[:-1]} for {asked} mentioned in the provided text is",
    )


def select_values(asked: list[str], pairs: list[tuple[str, str]]) -> tuple[str, ...]:
    """Select the values of the asked keys in the order of the text; RULER's scores ignore the order."""
    return tuple(value for key, value in pairs if key in asked)


def write_answer(values: tuple[str, ...]) -> str:
    return " " + ", ".join(values) + "."


@dataclass(frozen=True, kw_only=True)
class NeedleInHaystack(Task):
    """Find the values that belong to the asked keys.

    The haystack is a repeated line of noise, needles of other keys, or an essay: the text that `essay` names (see
    `baklava.tasks.text.essay`). RULER's eight tasks are settings of the haystack, the three counts and the two kinds:
    `conf/task/ruler/niah_*.yaml`. `conf/task/niah_*.yaml` hide all needles in noise, which needs no file.

    With `n_questions`, so many successive samples ask about the same context, each about other keys (not in RULER).
    """

    family: ClassVar[str] = "niah"

    n_keys: Count = 1
    n_values: Count = 1
    n_queries: Count = 1
    n_questions: Count = 1
    n_digits: Count = 7
    key_kind: Kind = "words"
    value_kind: Kind = "numbers"
    haystack: Literal["noise", "needle", "essay"] = "noise"
    essay: str | None = None
    essay_split: str = "train"
    essay_revision: str | None = None

    def __post_init__(self) -> None:
        if self.n_queries > self.n_keys:
            raise UserError(f"n_queries ({self.n_queries}) must not be more than n_keys ({self.n_keys})")
        if self.n_questions > 1 and self.n_questions * self.n_queries > self.n_keys:
            raise UserError(
                f"n_questions x n_queries ({self.n_questions * self.n_queries}) must not be more than n_keys "
                f"({self.n_keys}), as no key is asked for twice"
            )
        n_needles = self.n_keys * self.n_values
        if self.haystack == "essay" and n_needles > len(DEPTHS):
            raise UserError(f"haystack: an essay takes at most {len(DEPTHS)} needles, n_keys x n_values is {n_needles}")

    def check(self) -> None:
        if self.haystack == "essay":
            check_essay(self.essay, task=self.name)

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        context_index, nth_question = split_index(index, self.n_questions)
        rng = self.random_stream(split=split, seed=seed, index=context_index)
        keys = draw_keys(self.n_keys, self.key_kind, rng, n_digits=self.n_digits)
        pairs = [
            (key, draw_value(self.value_kind, rng, n_digits=self.n_digits))
            for key in keys
            for _ in range(self.n_values)
        ]
        rng.shuffle(pairs)
        needles = [write_needle(key, value, kind=self.value_kind) for key, value in pairs]
        drawn = rng.sample(keys, self.n_queries * self.n_questions)
        asked_by_question = [drawn[start : start + self.n_queries] for start in range(0, len(drawn), self.n_queries)]
        plural = self.n_queries * self.n_values > 1
        questions = [write_question(asked, plural=plural, kind=self.value_kind) for asked in asked_by_question]
        seed_of_text = rng.getrandbits(64)

        def context(n: int) -> str:
            hay = self._hay(n, avoid=keys, seed=seed_of_text)
            positions = self.positions(
                len(needles), len(hay), rng=random.Random(seed_of_text), split=split, index=context_index
            )
            joined = (" " if self.haystack == "essay" else "\n").join(insert_needles(needles, positions, hay))
            return write_header(plural=plural, kind=self.value_kind) + joined + "\n"

        sample = Sample(
            index=index,
            context="",
            question="",
            answer_prefix="",
            answers=select_values(asked_by_question[nth_question], pairs),
            max_new_tokens=self.max_new_tokens,
        )
        unit = {"noise": "noise lines", "needle": "other needles", "essay": "words of the essay"}[self.haystack]
        return fill_shared_context(
            sample,
            context,
            questions,
            nth_question,
            unit=unit,
            task=self.name,
            length=length,
            count_tokens=count_tokens,
        )

    def positions(self, n_needles: int, n_pieces: int, *, rng: random.Random, split: str, index: int) -> list[int]:
        """Choose before which pieces of hay needles go, in rising order; few calibration samples cover all depths."""
        if split == "calibration":
            return spread_positions(n_needles, n_pieces, index)
        return (draw_positions_at_depths if self.haystack == "essay" else draw_positions)(n_needles, n_pieces, rng)

    def _hay(self, n: int, *, avoid: Container[str], seed: int) -> list[str]:
        """Make `n` lines of noise, `n` needles of keys that nobody asks for, or the sentences of `n` words."""
        if self.haystack == "noise":
            return [NOISE_LINE] * n
        if self.haystack == "needle":
            return list(islice(self._other_needles(avoid, random.Random(f"other needles/{seed}")), n))
        essay = check_essay(self.essay, task=self.name)
        return split_sentences(read_essay_words(essay, self.essay_split, self.essay_revision), n)

    def _other_needles(self, avoid: Container[str], rng: random.Random) -> Iterator[str]:
        while True:
            key, value = (draw_value(kind, rng, n_digits=self.n_digits) for kind in (self.key_kind, self.value_kind))
            if key not in avoid:
                yield write_needle(key, value, kind=self.value_kind)

    def metric_name(self) -> str:
        return "string_match_all"

    def reference_answer(self, sample: Sample) -> str:
        return write_answer(sample.answers)
