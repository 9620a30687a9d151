"""LongBench and LongBench-E (arXiv 2308.14508): 21 sets of English, Chinese and code, read from the published data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from baklava.errors import UserError
from baklava.tasks.base import CountTokens, Sample
from baklava.tasks.from_file import FileTask
from baklava.tasks.text.truncate import cut_middle

# LongBench-E averages within classes of length in words (characters for Chinese): below 4,000, below 8,000, longer.
LENGTH_CLASSES = ("0-4k", "4-8k", "8k+")

# The only set whose published run stops generating at a new line, though not before the first token.
ONE_LINE = "samsum"


@dataclass(frozen=True)
class Spec:
    """What the benchmark prescribes for one of its sets; `longbench.json` holds these and their sources."""

    metric: str
    max_new_tokens: int
    chat: bool  # whether chat models get the prompt in their template
    first_line: bool  # whether only the first line of a prediction counts
    in_e: bool  # whether LongBench-E has this set
    prompt: str  # with {context} once and {input} at most once, after it


@cache
def load_specs() -> dict[str, Spec]:
    """Load what is prescribed for each of the 21 sets, by name."""
    sets = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))["sets"]
    return {name: Spec(**values) for name, values in sets.items()}


def find_length_class(length: int) -> str:
    return LENGTH_CLASSES[(length >= 4000) + (length >= 8000)]


def keep_first_line(prediction: str) -> str:
    return prediction.lstrip("\n").split("\n")[0]


def find_last_line(text: str) -> int:
    """Find where the last line that is not blank begins."""
    return text.rstrip().rfind("\n") + 1


@dataclass(frozen=True, kw_only=True)
class LongBench(FileTask):
    """One set of LongBench, or with `extended` of LongBench-E.

    A sample's context goes from the beginning of the template to the end of the row's context; the last line of the
    prompt, such as `Answer:`, is the answer prefix. A prompt that is too long loses its middle. The published lengths
    (3,500 for a model of 4,096 positions) exclude the generated tokens, which `length` includes. `max_new_tokens` 0
    means the published number. Generation for samsum stops after the first line, as published.
    """

    family: ClassVar[str] = "longbench"

    dataset: str
    extended: bool = False
    max_new_tokens: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.dataset not in load_specs():
            raise UserError(f"dataset: LongBench has no {self.dataset!r}; it has {', '.join(load_specs())}")
        if self.extended and not self.spec.in_e:
            known = ", ".join(name for name, spec in load_specs().items() if spec.in_e)
            raise UserError(f"extended: LongBench-E has no {self.dataset!r}; it has {known}")
        if self.max_new_tokens == 0:
            object.__setattr__(self, "max_new_tokens", self.spec.max_new_tokens)

    @property
    def spec(self) -> Spec:
        return load_specs()[self.dataset]

    def file_name(self) -> str:
        return f"{self.dataset}{'_e' if self.extended else ''}.jsonl"

    def _wanted(self) -> str:
        return (
            f"LongBench's data.zip, the folder with its {self.file_name()}, or a data set that `datasets` loads "
            "(data.zip is at https://huggingface.co/datasets/THUDM/LongBench)"
        )

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        row = self.row(split=split, index=index)
        before, after = self.spec.prompt.split("{context}")
        if "{input}" in after:
            after = after.replace("{input}", row.text("input"))
        answer_at = find_last_line(after)
        sample = Sample(
            index=index,
            context=before + row.text("context"),
            question=after[:answer_at],
            answer_prefix=after[answer_at:],
            answers=row.texts("answers"),
            max_new_tokens=self.max_new_tokens,
            all_classes=row.texts("all_classes") if self.spec.metric == "classification" else (),
            chat="prompt" if self.spec.chat else "none",
            one_line=self.dataset == ONE_LINE,
            group=find_length_class(row.count("length")) if self.extended else "",
            id=row.name("_id") if row.has("_id") else "",
        )
        return cut_middle(sample, task=self.name, location=row.location, length=length, count_tokens=count_tokens)

    def metric_name(self) -> str:
        return self.spec.metric

    def score(self, prediction: str, answers: tuple[str, ...], all_classes: tuple[str, ...] = ()) -> float:
        counted = keep_first_line(prediction) if self.spec.first_line else prediction
        return super().score(counted, answers, all_classes)

    def reference_answer(self, sample: Sample) -> str:
        return sample.answers[0] if sample.answer_prefix.endswith((" ", "\n")) else " " + sample.answers[0]
