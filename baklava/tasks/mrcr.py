"""OpenAI's MRCR: find the n-th of several answers that are alike in a long conversation (openai/mrcr)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

from baklava.errors import UserError
from baklava.tasks.base import Count, CountTokens, Sample
from baklava.tasks.from_file import FileTask
from baklava.tasks.text.rows import Row
from baklava.tasks.text.truncate import cut_middle

SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}


@dataclass(frozen=True, kw_only=True)
class MRCR(FileTask):
    """Return one of the earlier texts of a conversation, after a random beginning that is asked for.

    Fields and score (`mrcr`) are those published. The messages before the last are the context, written out with their
    speakers and inside one turn of the user; the published runs give them to a model as turns of their own.
    A conversation that is too long loses its middle, and perhaps what is asked for.
    """

    family: ClassVar[str] = "mrcr"

    data_split: str = "train"
    max_new_tokens: Count = 2048

    def _wanted(self) -> str:
        return "MRCR's 2needle.parquet or the like, or a data set that `datasets` loads (openai/mrcr on Hugging Face)"

    def required_fields(self) -> tuple[str, ...]:
        return "prompt", "answer", "random_string_to_prepend"

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        row = self.row(split=split, index=index)
        *before, (_, asked) = _messages(row)
        sample = Sample(
            index=index,
            context="".join(f"{speaker}: {content}\n\n" for speaker, content in before),
            question=f"User: {asked}",
            answer_prefix="",
            answers=(row.text("answer"),),
            max_new_tokens=self.max_new_tokens,
            all_classes=(row.text("random_string_to_prepend"),),
        )
        return cut_middle(
            sample, task=self.name, location=row.location, length=length, count_tokens=count_tokens, keep_question=True
        )

    def metric_name(self) -> str:
        return "mrcr"

    def reference_answer(self, sample: Sample) -> str:
        return sample.answers[0]


def _messages(row: Row) -> list[tuple[str, str]]:
    """Speaker and content of each message of the conversation."""
    try:
        messages = [(SPEAKERS[turn["role"]], str(turn["content"])) for turn in json.loads(row.text("prompt"))]
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{row.location}: prompt: expected a list of messages with role and content, as JSON; see openai/mrcr"
        ) from None
    if len(messages) < 2:
        raise UserError(f"{row.location}: prompt: {len(messages)} messages; the last one asks about those before it")
    return messages
