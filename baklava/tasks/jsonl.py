"""A task of the user's own: a JSONL file with one sample per line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from baklava.errors import UserError
from baklava.tasks.base import CountTokens, Sample
from baklava.tasks.from_file import FileTask
from baklava.tasks.metrics import METRICS, WITH_CLASSES
from baklava.tasks.text.truncate import cut_middle


@dataclass(frozen=True, kw_only=True)
class JsonlTask(FileTask):
    """Samples from a file, scored by the named metric.

    The fields of a line are `context`, `question` and `answers` (a list of texts), and optionally `id`, `answer_prefix`
    (the beginning of the answer), `max_new_tokens`, and `all_classes` for the metrics in `WITH_CLASSES`. The prompt is
    context, question and answer prefix without anything between them, so the file must contain the line breaks. A
    prompt that is too long loses its middle, but nothing of the question. `data` may also be a data set with these
    columns that `datasets` loads.
    """

    family: ClassVar[str] = "jsonl"

    data_split: str = "train"
    metric: str = "qa_f1"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UserError(f"metric: unknown metric {self.metric!r}; known: {', '.join(METRICS)}")

    def required_fields(self) -> tuple[str, ...]:
        return "context", "question", "answers"

    def _wanted(self) -> str:
        return "a JSONL file with the fields context, question and answers"

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        row = self.row(split=split, index=index)
        needs_classes = self.metric in WITH_CLASSES or row.has("all_classes")
        sample = Sample(
            index=index,
            context=row.text("context"),
            question=row.text("question"),
            answer_prefix=row.text("answer_prefix") if row.has("answer_prefix") else "",
            answers=row.texts("answers"),
            max_new_tokens=row.count("max_new_tokens") if row.has("max_new_tokens") else self.max_new_tokens,
            all_classes=row.texts("all_classes") if needs_classes else (),
            id=row.name("id") if row.has("id") else "",
        )
        return cut_middle(
            sample, task=self.name, location=row.location, length=length, count_tokens=count_tokens, keep_question=True
        )

    def metric_name(self) -> str:
        return self.metric

    def reference_answer(self, sample: Sample) -> str:
        return sample.answers[0] if sample.answer_prefix.endswith((" ", "\n")) else " " + sample.answers[0]
