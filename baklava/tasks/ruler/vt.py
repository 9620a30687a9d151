"""Variable tracking: RULER's `vt` (arXiv 2404.06654, section 3)."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from baklava.errors import UserError
from baklava.tasks.base import Count, CountTokens, Sample, Task
from baklava.tasks.text.fit_length import fill_context, largest_fitting
from baklava.tasks.text.noise import hide_in_noise

HEADER = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
QUESTION = "Question: Find all variables that are assigned the value {value} in the text above."
# The misspelling is RULER's own; scores compare only with the same prompt.
ANSWER_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, "
    "{n} variables are assgined the value {value}, they are: "
)


@dataclass(frozen=True)
class Chain:
    """Variables of which the first is assigned a value, and each other one the variable before it."""

    names: tuple[str, ...]
    value: str

    @classmethod
    def draw(cls, *, n_hops: int, n_letters: int, rng: random.Random) -> Chain:
        names: dict[str, None] = {}
        while len(names) < n_hops + 1:
            names["".join(rng.choices(string.ascii_uppercase, k=n_letters))] = None
        return cls(tuple(names), str(rng.randint(10_000, 99_999)))

    def statements(self) -> list[str]:
        first = f"VAR {self.names[0]} = {self.value}"
        return [first, *(f"VAR {b} = VAR {a}" for a, b in zip(self.names, self.names[1:], strict=False))]

    def question(self) -> tuple[str, str]:
        return QUESTION.format(value=self.value), ANSWER_PREFIX.format(n=len(self.names), value=self.value)

    def answer(self) -> str:
        return " ".join(self.names)


@dataclass(frozen=True, kw_only=True)
class VariableTracking(Task):
    """Name every variable that holds a value through a chain of assignments.

    As in RULER, a solved example (three-letter names, at most `example_length` tokens) precedes the text;
    `example_length` 0 leaves it out. RULER draws one example per run and renames its variables for each sample; here
    each sample draws its own example.
    """

    family: ClassVar[str] = "vt"

    n_hops: Annotated[int, Field(ge=1, le=1000)] = 4
    n_letters: Annotated[int, Field(ge=3)] = 5  # 3 letters give enough names for the longest chain
    example_length: Annotated[int, Field(ge=0)] = 500
    max_new_tokens: Count = 30

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        rng = self.random_stream(split=split, seed=seed, index=index)
        chain = Chain.draw(n_hops=self.n_hops, n_letters=self.n_letters, rng=rng)
        example = self._example(rng, count_tokens) if self.example_length else ""
        asked, answer_prefix = chain.question()
        position_seed = rng.getrandbits(64)

        def context(n_lines: int) -> str:
            return example + HEADER + hide_in_noise(chain.statements(), n_lines, random.Random(position_seed)) + "\n"

        sample = Sample(
            index=index,
            context="",
            question=asked,
            answer_prefix=answer_prefix,
            answers=chain.names,
            max_new_tokens=self.max_new_tokens,
        )
        return fill_context(
            sample, context, unit="noise lines", task=self.name, length=length, count_tokens=count_tokens
        )

    def _example(self, rng: random.Random, count_tokens: CountTokens) -> str:
        chain = Chain.draw(n_hops=self.n_hops, n_letters=3, rng=rng)
        asked, answer_prefix = chain.question()
        position_seed = rng.getrandbits(64)

        def text(n_lines: int) -> str:
            hidden = hide_in_noise(chain.statements(), n_lines, random.Random(position_seed))
            return HEADER + hidden + "\n" + asked + answer_prefix + chain.answer() + "\n\n"

        n_lines = largest_fitting(text, room=self.example_length, count_tokens=count_tokens)
        if n_lines < 0:
            raise UserError(
                f"task {self.name}: example_length {self.example_length} is too short for a solved example, which "
                f"takes {count_tokens(text(0))} tokens; raise it, or set it to 0 for no example"
            )
        return text(n_lines)

    def metric_name(self) -> str:
        return "string_match_all"

    def reference_answer(self, sample: Sample) -> str:
        return " ".join(sample.answers)
