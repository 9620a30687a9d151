"""Needles and threads in one JSON object of UUIDs, several at a time (arXiv 2411.05000)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from baklava.errors import UserError
from baklava.tasks.base import Count, CountTokens, Sample, Task
from baklava.tasks.json_kv import Pair, draw_uuid, write_object
from baklava.tasks.text.fit_length import fill_context
from baklava.tasks.text.noise import positions_at

NEEDLES = "What are the values of these keys in the JSON object above: {keys}?"
CONDITION = "What are the values of all keys in the JSON object above that contain the character {character}?"
THREADS = (
    "Begin at each of these keys in the JSON object above: {keys}. While a value is a key itself, go on to the value "
    "of that key. What are the values that you end with?"
)
ANSWER_PREFIX = ' The values are "'
HEX_DIGITS = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12]  # places of a UUID, before its version


@dataclass(frozen=True, kw_only=True)
class NeedleThreading(Task):
    """Look up the values of `n_threads` keys at once, or follow as many threads of `n_hops` pairs to their ends.

    With a `character`, the keys are not named: all keys that contain it are asked for (the paper's conditional
    needles). With `n_threads` 1 this is `json_kv`. The pairs of a thread lie in the order in which they are followed
    (`direction` forward), in the opposite order, or in any; threads are interleaved at random. All lie at random
    places, or one after the other from `depth` on, the fraction of the other pairs before them.

    The score is the fraction of the values that the answer names. The paper reports the same for multiple needles and
    threads; its prompts are not published beyond an example, so instructions are ours and scores compare with no
    publication's. Branched threads are left out.
    """

    family: ClassVar[str] = "needle_threading"

    n_threads: Count = 3
    n_hops: Count = 1
    character: Annotated[str, Field(pattern=r"^[^\w\s\"\\-]?$")] = ""
    direction: Literal["forward", "backward", "any"] = "any"
    depth: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    max_new_tokens: Count = 192

    def __post_init__(self) -> None:
        if self.character and self.n_hops > 1:
            raise UserError(f"character: {self.character!r} marks needles; set n_hops=1, or leave it empty for threads")

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        rng = self.random_stream(split=split, seed=seed, index=index)
        threads = [[draw_uuid(rng) for _ in range(self.n_hops + 1)] for _ in range(self.n_threads)]
        if self.character:
            threads = [[self._mark(key, rng), value] for key, value in threads]
        asked = self._in_order([list(pairwise(thread)) for thread in threads], rng)
        seed_of_others = rng.getrandbits(64)

        def context(n: int) -> str:
            others_rng = random.Random(seed_of_others)
            others = [(draw_uuid(others_rng), draw_uuid(others_rng)) for _ in range(n)]
            positions = positions_at(self.depth, len(asked), n, split=split, index=index, rng=others_rng)
            return write_object(asked, others, positions)

        keys = ", ".join(f'"{thread[0]}"' for thread in threads)
        question = CONDITION if self.character else NEEDLES if self.n_hops == 1 else THREADS
        sample = Sample(
            index=index,
            context="",
            question=question.format(keys=keys, character=self.character),
            answer_prefix=ANSWER_PREFIX,
            answers=tuple(thread[-1] for thread in threads),
            max_new_tokens=self.max_new_tokens,
        )
        return fill_context(
            sample, context, unit="other pairs", task=self.name, length=length, count_tokens=count_tokens
        )

    def _mark(self, key: str, rng: random.Random) -> str:
        """Put the character into a key, in place of one of its first digits."""
        place = rng.choice(HEX_DIGITS)
        return key[:place] + self.character + key[place + 1 :]

    def _in_order(self, threads: list[list[Pair]], rng: random.Random) -> list[Pair]:
        """The pairs of all threads, interleaved at random, each thread in its direction."""
        turns = [number for number, thread in enumerate(threads) for _ in thread]
        rng.shuffle(turns)
        for thread in threads:
            if self.direction == "any":
                rng.shuffle(thread)
            elif self.direction == "backward":
                thread.reverse()
        left = [iter(thread) for thread in threads]
        return [next(left[number]) for number in turns]

    def metric_name(self) -> str:
        return "string_match_all"

    def reference_answer(self, sample: Sample) -> str:
        return '", "'.join(sample.answers) + '".'
