"""Keys and values in one JSON object: retrieval that no words help with (arXiv 2307.03172), and threads through it.

A thread (arXiv 2411.05000) goes from a key to its value, which is a key again, and so on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar
from uuid import UUID

from pydantic import Field

from baklava.tasks.base import Count, CountTokens, Sample, Task
from baklava.tasks.text.noise import insert_needles, positions_at
from baklava.tasks.text.questions import fill_shared_context, split_index

HEADER = "This is a JSON object.\n\n"
LOOK_UP = 'What is the value of the key "{key}" in the JSON object above?'
FOLLOW = (
    'Begin at the key "{key}" in the JSON object above. While a value is a key itself, go on to the value of that key. '
    "What is the value that you end with?"
)
WRITE_STEPS = (
    'Begin at the key "{key}" in the JSON object above. While a value is a key itself, go on to the value of that key. '
    "Write down each value on the way."
)
ANSWER_PREFIX = ' The value is "'

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class JsonKeyValue(Task):
    """Look up the value of a key among others; keys and values are random UUIDs.

    With `n_hops` above 1 the value is a key, too, so many times in all, and the last value is asked for; with
    `write_steps` every value on the way, of which the score is the fraction that was written. All pairs of a thread lie
    at random places in random order, or one after the other from `depth` on, the fraction of the other pairs before
    them. With `n_questions`, so many successive samples ask about the same object. Instructions are ours, so scores
    compare with no publication's.
    """

    family: ClassVar[str] = "json_kv"

    n_hops: Count = 1
    write_steps: bool = False
    n_questions: Count = 1
    depth: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    max_new_tokens: Count = 64

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        context_index, nth_question = split_index(index, self.n_questions)
        rng = self.random_stream(split=split, seed=seed, index=context_index)
        threads = [[draw_uuid(rng) for _ in range(self.n_hops + 1)] for _ in range(self.n_questions)]
        asked = [pair for thread in threads for pair in pairwise(thread)]
        if self.depth is None:
            rng.shuffle(asked)
        seed_of_others = rng.getrandbits(64)

        def context(n: int) -> str:
            others_rng = random.Random(seed_of_others)
            others = [(draw_uuid(others_rng), draw_uuid(others_rng)) for _ in range(n)]
            positions = positions_at(self.depth, len(asked), n, split=split, index=context_index, rng=others_rng)
            return write_object(asked, others, positions)

        question = (LOOK_UP if self.n_hops == 1 else WRITE_STEPS if self.write_steps else FOLLOW).format
        values = threads[nth_question][1:]
        sample = Sample(
            index=index,
            context="",
            question="",
            answer_prefix="",
            answers=tuple(values if self.write_steps else values[-1:]),
            max_new_tokens=self.max_new_tokens,
        )
        return fill_shared_context(
            sample,
            context,
            [(question(key=thread[0]), ANSWER_PREFIX) for thread in threads],
            nth_question,
            unit="other pairs",
            task=self.name,
            length=length,
            count_tokens=count_tokens,
        )

    def metric_name(self) -> str:
        return "string_match_all"

    def reference_answer(self, sample: Sample) -> str:
        return f'".{ANSWER_PREFIX}'.join(sample.answers) + '".'


def draw_uuid(rng: random.Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))


def write_object(asked: Sequence[Pair], others: Sequence[Pair], positions: Sequence[int]) -> str:
    """Write a JSON object of pairs, those that are `asked` for at their positions among the others."""
    needles, lines = ([f"{json.dumps(key)}: {json.dumps(value)}" for key, value in some] for some in (asked, others))
    return HEADER + "{" + ",\n ".join(insert_needles(needles, positions, lines)) + "}\n\n"
