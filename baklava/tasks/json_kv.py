"""Keys and values in one JSON object: retrieval that no words help with (arXiv 2307.03172), and threads through it.

A thread (arXiv 2411.05000) goes from a key to its value, which is a key again, and so on.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, ClassVar
from uuid import UUID

from pydantic import Field

from baklava.tasks.base import Count, CountTokens, Sample, Task
from baklava.tasks.text.fit_length import fill_context
from baklava.tasks.text.noise import draw_positions, insert_needles, spread_positions

HEADER = "This is a JSON object.\n\n"
LOOK_UP = 'What is the value of the key "{key}" in the JSON object above?'
FOLLOW = (
    'Begin at the key "{key}" in the JSON object above. While a value is a key itself, go on to the value of that key. '
    "What is the value that you end with?"
)
ANSWER_PREFIX = ' The value is "'


@dataclass(frozen=True, kw_only=True)
class JsonKeyValue(Task):
    """Look up the value of a key among others; keys and values are random UUIDs.

    With `n_hops` above 1 the value is a key, too, so many times in all, and the last value is asked for. All pairs of a
    thread lie at random places in random order, or one after the other from `depth` on, the fraction of the other pairs
    before them. With `n_questions`, so many successive samples ask about the same object. Instructions are ours, so
    scores compare with no publication's.
    """

    family: ClassVar[str] = "json_kv"

    n_hops: Count = 1
    n_questions: Count = 1
    depth: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    max_new_tokens: Count = 64

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        context_index, nth_question = divmod(index, self.n_questions)
        rng = self.random_stream(split=split, seed=seed, index=context_index)
        threads = [[_draw_uuid(rng) for _ in range(self.n_hops + 1)] for _ in range(self.n_questions)]
        asked = [pair for thread in threads for pair in pairwise(thread)]
        if self.depth is None:
            rng.shuffle(asked)
        seed_of_others = rng.getrandbits(64)

        def context(n: int) -> str:
            others_rng = random.Random(seed_of_others)
            others = [(_draw_uuid(others_rng), _draw_uuid(others_rng)) for _ in range(n)]
            if self.depth is not None:
                positions = [round(self.depth * n)] * len(asked)
            elif split == "calibration":
                positions = spread_positions(len(asked), n, context_index)
            else:
                positions = draw_positions(len(asked), n, others_rng)
            lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in others]
            needles = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in asked]
            return HEADER + "{" + ",\n ".join(insert_needles(needles, positions, lines)) + "}\n\n"

        question = (LOOK_UP if self.n_hops == 1 else FOLLOW).format
        questions = [question(key=thread[0]) for thread in threads]
        sample = Sample(
            index=index,
            context="",
            question=max(questions, key=count_tokens),  # all have to fit
            answer_prefix=ANSWER_PREFIX,
            answers=(threads[nth_question][-1],),
            max_new_tokens=self.max_new_tokens,
        )
        filled = fill_context(
            sample, context, unit="other pairs", task=self.name, length=length, count_tokens=count_tokens
        )
        return replace(filled, question=questions[nth_question])

    def metric_name(self) -> str:
        return "string_match_all"

    def reference_answer(self, sample: Sample) -> str:
        return f'{sample.answers[0]}".'


def _draw_uuid(rng: random.Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))
