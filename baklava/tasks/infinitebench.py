"""InfiniteBench (arXiv 2402.13718): eleven sets of texts of about 100,000 tokens whose scores need no judge."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from baklava.errors import UserError
from baklava.tasks.base import CountTokens, Sample
from baklava.tasks.from_file import FileTask
from baklava.tasks.text.rows import Row
from baklava.tasks.text.truncate import cut_middle

LETTERS = "ABCD"


@dataclass(frozen=True)
class Spec:
    """What the benchmark prescribes for one of its sets; `infinitebench.json` holds these and their sources."""

    score: str
    max_new_tokens: int
    before: str  # the context, with the names of fields in braces
    question: str
    answer_prefix: str


@cache
def load_specs() -> dict[str, Spec]:
    """Load what is prescribed for each set, by name."""
    sets = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))["sets"]
    return {name: Spec(**values) for name, values in sets.items()}


@dataclass(frozen=True, kw_only=True)
class InfiniteBench(FileTask):
    """One set of InfiniteBench; of its twelve, the summaries are left out.

    Prompts are those of the published runs of local models, without system message, and scores those published, for
    any model the same (GPT-4's first value of `math_calc` was skipped); white space around a prediction does not count.
    A prompt that is too long loses its middle. `max_new_tokens` 0 means the published number, which is very large for
    `math_calc`.
    """

    family: ClassVar[str] = "infinitebench"

    dataset: str
    max_new_tokens: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.dataset not in load_specs():
            raise UserError(f"dataset: InfiniteBench has no {self.dataset!r} here; it has {', '.join(load_specs())}")
        if self.max_new_tokens == 0:
            object.__setattr__(self, "max_new_tokens", self.spec.max_new_tokens)

    @property
    def spec(self) -> Spec:
        return load_specs()[self.dataset]

    def file_name(self) -> str:
        return f"{self.dataset}.jsonl"

    def _wanted(self) -> str:
        return (
            f"the folder with InfiniteBench's {self.file_name()}, or a data set that `datasets` loads "
            f"(xinrongzhang2022/InfiniteBench with data_split {self.dataset})"
        )

    def required_fields(self) -> tuple[str, ...]:
        return "context", "answer"

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        row = self.row(split=split, index=index)
        fields = self._fields(row)
        sample = Sample(
            index=index,
            context=self.spec.before.format(**fields) + row.text("context"),
            question=self.spec.question.format(**fields),
            answer_prefix=self.spec.answer_prefix.format(**fields),
            answers=self._answers(row),
            max_new_tokens=self.max_new_tokens,
            id=row.name("id") if row.has("id") else "",
        )
        return cut_middle(sample, task=self.name, location=row.location, length=length, count_tokens=count_tokens)

    def _fields(self, row: Row) -> dict[str, str]:
        """What stands for the names in braces."""
        fields = {"input": row.text("input")} if "{input}" in self.spec.question else {}
        if "{A}" in self.spec.question:
            options = row.texts("options")
            if len(options) != len(LETTERS):
                raise UserError(f"{row.location}: options: expected four, got {len(options)}")
            fields |= dict(zip(LETTERS, options, strict=True))
        if self.dataset == "code_run":
            fields["call"] = _find(r"func_[0-9]+\(-?[0-9]+\)", row)
            fields["function"] = fields["call"].partition("(")[0]
        if self.dataset == "math_find":
            fields["target"] = _find(r"The .+ of", row).lower().removesuffix(" of")
        return fields

    def _answers(self, row: Row) -> tuple[str, ...]:
        """The right answers; of choices, the text of the right option and its letter."""
        value = row.require("answer")
        values: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
        if len(values) == 1 and isinstance(values[0], list):  # as some files nest the values of math_calc
            values = values[0]
        if not values or not all(type(one) in (str, int, float) for one in values):
            raise UserError(
                f"{row.location}: answer: expected a text, a number, or a list of these; see the published set"
            )
        answers = tuple(map(str, values))
        if "{A}" not in self.spec.question or (len(answers) == 2 and answers[1] in LETTERS):
            return answers
        options = row.texts("options")
        if answers[0] not in options:
            raise UserError(f"{row.location}: answer: {answers[0]!r} is none of the options")
        return answers[0], LETTERS[options.index(answers[0])]

    def metric_name(self) -> str:
        return f"infinitebench_{self.spec.score}"

    def reference_answer(self, sample: Sample) -> str:
        if self.spec.score == "leading_values":
            return f" [{', '.join(sample.answers)}]"
        return f" {sample.answers[-1]}." if "{A}" in self.spec.question else f" {sample.answers[0]}"


def _find(pattern: str, row: Row) -> str:
    found = re.search(pattern, row.text("input"))
    if found is None:
        raise UserError(f"{row.location}: input: nothing like {pattern!r} in it; see the published set")
    return found[0]
