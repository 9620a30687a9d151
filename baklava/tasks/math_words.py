"""GSM8K (arXiv 2110.14168), MATH-500 (arXiv 2103.03874) and AIME: reasoning with an exact answer at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from baklava.tasks.base import Count, CountTokens, Sample
from baklava.tasks.from_file import FileTask
from baklava.tasks.text.rows import Row
from baklava.tasks.text.truncate import cut_middle

QUESTION = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."

_WANTED = {
    "gsm8k": "GSM8K's test.jsonl, or a data set that `datasets` loads (openai/gsm8k with data_name main)",
    "math_500": "MATH-500's test.jsonl, or a data set that `datasets` loads (HuggingFaceH4/MATH-500)",
    "aime": "a file of problems, or a data set that `datasets` loads (HuggingFaceH4/aime_2024 with data_split train)",
}


@dataclass(frozen=True, kw_only=True)
class MathWords(FileTask):
    """A problem in words, and a long answer whose end is compared exactly.

    The problem is the context, and so short that it is mostly kept whole (`evaluate.compress_above`): it is the answer
    that fills the cache. With `evaluate.decoding=fixed` it has to do with the entries of the problem, all of them, or
    of a ratio where `compress_above` is 0. `evaluate.length` has to hold problem and answer. The request to reason and
    to box the answer is the usual one, not part of the sets, and no solved examples come before; scores of other
    prompts differ. Numbers are compared for GSM8K and AIME (`final_number`; published scores of GSM8K take no number
    without `####` before it), expressions for MATH-500 (`boxed`; graders that compute, as PRM800K's, accept more).
    """

    family: ClassVar[str] = "math_words"

    dataset: Literal["gsm8k", "math_500", "aime"]
    max_new_tokens: Count = 1024

    def _wanted(self) -> str:
        return _WANTED[self.dataset]

    def required_fields(self) -> tuple[str, ...]:
        return ("question", "answer") if self.dataset == "gsm8k" else ("problem", "answer")

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        row = self.row(split=split, index=index)
        sample = Sample(
            index=index,
            context=row.text(self.required_fields()[0]).strip(),
            question=QUESTION,
            answer_prefix="",
            answers=(self._answer(row),),
            max_new_tokens=self.max_new_tokens,
            id=next((row.name(field) for field in ("unique_id", "id", "ID") if row.has(field)), ""),
        )
        return cut_middle(
            sample, task=self.name, location=row.location, length=length, count_tokens=count_tokens, keep_question=True
        )

    def _answer(self, row: Row) -> str:
        """The right answer; GSM8K's comes after a solution and `####`."""
        answer = row.name("answer")
        return answer.rpartition("####")[2].strip() if self.dataset == "gsm8k" else answer

    def metric_name(self) -> str:
        return "boxed" if self.dataset == "math_500" else "final_number"

    def reference_answer(self, sample: Sample) -> str:
        return f"\\boxed{{{sample.answers[0]}}}"
