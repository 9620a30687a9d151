"""What a task is: it makes samples of an asked length and scores predictions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from baklava.tasks.metrics import METRICS, check_metric

# Number of tokens that the target model's tokenizer makes of a text, special tokens not counted.
CountTokens = Callable[[str], int]

Count = Annotated[int, Field(ge=1)]

# Samples of different splits come from different random streams, whatever their seeds.
SPLITS = ("train", "calibration", "evaluation")

# How far the user's turn of a chat template reaches: to the end of the question, so that the answer prefix begins the
# model's turn (RULER); to the end of the prompt (LongBench); or no template at all.
Chat = Literal["question", "prompt", "none"]


def random_stream(*, split: str, name: str, seed: int, index: int) -> random.Random:
    """A generator: equal arguments, equal numbers, on every machine. Its seed begins with the split."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    return random.Random(f"{split}/{name}/{seed}/{index}")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt, in the parts that a compression protocol treats differently.

    The prompt is `context + question + answer_prefix`; the model continues it with the answer. `all_classes` is what
    the metric `classification` asks for, `id` the sample's name in the file that it comes from, and `group` what it is
    averaged with inside its task, such as a class of lengths. With `one_line` generation ends with the first line.
    """

    index: int
    context: str
    question: str
    answer_prefix: str
    answers: tuple[str, ...]
    max_new_tokens: int
    all_classes: tuple[str, ...] = ()
    chat: Chat = "question"
    one_line: bool = False
    group: str = ""
    id: str = ""

    @property
    def prompt(self) -> str:
        return self.context + self.question + self.answer_prefix


@dataclass(frozen=True, kw_only=True)
class Task:
    """Interface of a task; the fields of a subclass are its parameters.

    A subclass lives in a file of its own, names its `family`, and implements `sample`, `metric_name` and
    `reference_answer`. Unknown parameters are refused.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    family: ClassVar[str]
    by_loss: ClassVar[bool] = False  # scored by how likely the model finds the first answer; nothing is generated

    name: str
    max_new_tokens: Count = 128

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        """Sample `index` of a stream, at most `length` tokens long including the generated ones.

        Depends on (split, seed, index) and the parameters alone.
        Raises `UserError` when no sample within [0.9, 1.0] of `length` exists.
        """
        raise NotImplementedError

    def metric_name(self) -> str:
        """Which of `METRICS` scores the predictions."""
        raise NotImplementedError

    def score(self, prediction: str, answers: tuple[str, ...], all_classes: tuple[str, ...] = ()) -> float:
        """Quality of one prediction, in [0, 1]."""
        return METRICS[self.metric_name()](prediction, answers, all_classes)

    def reference_answer(self, sample: Sample) -> str:
        """The text that a perfect model writes after the prompt; used for training and for losses."""
        raise NotImplementedError

    def n_available(self) -> int | None:
        """How many samples there are; None: any number, since they are made and not read."""
        return None

    def n_samples(self, asked: int) -> int:
        """As many samples as were asked for, or all that there are."""
        available = self.n_available()
        return asked if available is None else min(asked, available)

    def check(self) -> None:
        """Look, before the first job and without reading much, whether samples can be made and scored.

        Raises `UserError` that says what to provide: here, what the metric needs.
        """
        if not self.by_loss:
            check_metric(self.metric_name())

    def random_stream(self, *, split: str, seed: int, index: int) -> random.Random:
        """The generator of one sample."""
        return random_stream(split=split, name=self.name, seed=seed, index=index)
