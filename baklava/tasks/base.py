"""What a task is: it makes samples of an asked length and scores predictions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

# Number of tokens that the target model's tokenizer makes of a text, special tokens not counted.
CountTokens = Callable[[str], int]

Count = Annotated[int, Field(ge=1)]

# Samples of different splits come from different random streams, whatever their seeds.
SPLITS = ("train", "calibration", "evaluation")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt, in the parts that a compression protocol treats differently.

    The prompt is `context + question + answer_prefix`; the model continues it with the answer.
    """

    index: int
    context: str
    question: str
    answer_prefix: str
    answers: tuple[str, ...]
    max_new_tokens: int

    @property
    def prompt(self) -> str:
        return self.context + self.question + self.answer_prefix


@dataclass(frozen=True, kw_only=True)
class Task:
    """Interface of a task; the fields of a subclass are its parameters.

    A subclass lives in a file of its own, names its `family`, and implements `sample`, `score` and `reference_answer`.
    Unknown parameters are refused.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    family: ClassVar[str]

    name: str
    max_new_tokens: Count = 128

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        """Sample `index` of a stream, at most `length` tokens long including the generated ones.

        Depends on (split, seed, index) and the parameters alone.
        Raises `UserError` when no sample within [0.9, 1.0] of `length` exists.
        """
        raise NotImplementedError

    def score(self, prediction: str, answers: tuple[str, ...]) -> float:
        """Quality of one prediction, in [0, 1]."""
        raise NotImplementedError

    def reference_answer(self, sample: Sample) -> str:
        """The text that a perfect model writes after the prompt; used for training and for losses."""
        raise NotImplementedError

    def random_stream(self, *, split: str, seed: int, index: int) -> random.Random:
        """The generator of one sample: equal arguments, equal sample, on every machine."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        return random.Random(f"{split}/{self.name}/{seed}/{index}")
