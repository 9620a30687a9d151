"""LongBench v2 (arXiv 2412.15204): 503 questions with four choices about long texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from baklava.tasks.base import Count, CountTokens, Sample
from baklava.tasks.from_file import FileTask
from baklava.tasks.text.truncate import cut_middle

# As published, for answers without reasoning before them.
BEFORE = "Please read the following text and answer the question below.\n\n<text>\n"
AFTER = (
    "\n</text>\n\nWhat is the correct answer to this question: {question}\nChoices:\n(A) {choice_A}\n(B) {choice_B}\n"
    '(C) {choice_C}\n(D) {choice_D}\n\nFormat your response as follows: "The correct answer is (insert answer here)".'
)
FIELDS = ("question", "choice_A", "choice_B", "choice_C", "choice_D")


@dataclass(frozen=True, kw_only=True)
class LongBenchV2(FileTask):
    """The set without reasoning before the answer: prompt, 128 new tokens and exact letters as published.

    A prompt that is too long loses its middle. The published runs draw with temperature 0.1, these answers are greedy.
    Samples are in the order of the file.
    """

    family: ClassVar[str] = "longbench_v2"

    data_split: str = "train"
    max_new_tokens: Count = 128

    def file_name(self) -> str:
        return "data.json"

    def _wanted(self) -> str:
        return "LongBench v2's data.json, or a data set that `datasets` loads (THUDM/LongBench-v2 on Hugging Face)"

    def required_fields(self) -> tuple[str, ...]:
        return "context", *FIELDS, "answer"

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        row = self.row(split=split, index=index)
        sample = Sample(
            index=index,
            context=BEFORE + row.text("context").strip(),
            question=AFTER.format(**{field: row.text(field).strip() for field in FIELDS}),
            answer_prefix="",
            answers=(row.text("answer"),),
            max_new_tokens=self.max_new_tokens,
            chat="prompt",
            id=row.name("_id") if row.has("_id") else "",
        )
        return cut_middle(sample, task=self.name, location=row.location, length=length, count_tokens=count_tokens)

    def metric_name(self) -> str:
        return "choice"

    def reference_answer(self, sample: Sample) -> str:
        return f"The correct answer is ({sample.answers[0]})"
