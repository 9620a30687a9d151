"""The interface of a task, which makes samples of a requested length and scores predictions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from baklava.tasks.metrics import METRICS, check_metric

# Counts the tokens that the target model's tokenizer makes of a text; special tokens do not count.
CountTokens = Callable[[str], int]

Count = Annotated[int, Field(ge=1)]

# Samples of different splits come from different random streams, whatever their seeds.
SPLITS = ("train", "calibration", "evaluation")

# Where the user's turn of a chat template ends: after the question, so that the answer prefix begins the model's turn
# (RULER); after the prompt (LongBench); or no template.
Chat = Literal["question", "prompt", "none"]


def random_stream(*, split: str, name: str, seed: int, index: int) -> random.Random:
    """Make a generator that gives equal numbers for equal arguments on every machine.

    Its seed begins with the split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    return random.Random(f"{split}/{name}/{seed}/{index}")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt, split where compression protocols treat it differently.

    The prompt is `context + question + answer_prefix`; the model continues it with the answer. `all_classes` is for the
    metrics in `WITH_CLASSES`, `id` is the sample's name in its file, and `group` names the samples of the task that are
    averaged together, such as a class of lengths. With `one_line`, generation stops after the first line.
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
    """The interface of a task; the fields of a subclass are its parameters.

    A subclass has a file of its own, names its `family`, and implements `sample`, `metric_name` and `reference_answer`.
    Unknown parameters are refused.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    family: ClassVar[str]
    by_loss: ClassVar[bool] = False  # scored by the likelihood of the first answer, without generation

    name: str
    max_new_tokens: Count = 128

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        """Make sample `index` of a stream, at most `length` tokens long including the generated ones.

        It depends only on (split, seed, index) and the parameters. Raises `UserError` if there is no sample between 0.9
        and 1.0 of `length`.
        """
        raise NotImplementedError

    def metric_name(self) -> str:
        """The name in `METRICS` of the metric that scores the predictions."""
        raise NotImplementedError

    def score(self, prediction: str, answers: tuple[str, ...], all_classes: tuple[str, ...] = ()) -> float:
        """Score a prediction, in [0, 1]."""
        return METRICS[self.metric_name()](prediction, answers, all_classes)

    def reference_answer(self, sample: Sample) -> str:
        """The text that a perfect model writes after the prompt, for training and losses."""
        raise NotImplementedError

    def n_available(self) -> int | None:
        """How many samples exist; None for tasks that make any number of them."""
        return None

    def n_samples(self, asked: int) -> int:
        """The requested number of samples, or all that exist if that is fewer."""
        available = self.n_available()
        return asked if available is None else min(asked, available)

    def check(self) -> None:
        """Check before the first job, without reading much, that samples can be made and scored.

        Raises `UserError` that says what to provide; this one checks the packages of the metric.
        """
        if not self.by_loss:
            check_metric(self.metric_name())

    def check_rows(self) -> None:
        """Check before the first job, without reading much, that no row of a local file lacks what a sample is made of.

        Raises `UserError` that names file, line and field.
        """

    def random_stream(self, *, split: str, seed: int, index: int) -> random.Random:
        """Make the generator of one sample."""
        return random_stream(split=split, name=self.name, seed=seed, index=index)
