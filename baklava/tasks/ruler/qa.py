"""Question answering among distracting documents: RULER's `qa_1` (SQuAD) and `qa_2` (HotpotQA) (arXiv 2404.06654)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from typing import ClassVar, Literal

from baklava.tasks.base import Count, CountTokens, Sample
from baklava.tasks.from_file import FileTask
from baklava.tasks.ruler.qa_data import QaSet, read_qa_set
from baklava.tasks.text.fit_length import SHORTEST, checked, largest_fitting

INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
)
HEADER = INSTRUCTION + "The following are given documents.\n\n"
ANSWER_PREFIX = " Answer:"

_WANTED = {
    "squad": "RULER's squad.json (SQuAD's dev-v2.0.json) or a data set that `datasets` loads, such as squad_v2",
    "hotpotqa": "RULER's hotpotqa.json (hotpot_dev_distractor_v1.json) or a data set that `datasets` loads",
}


@dataclass(frozen=True, kw_only=True)
class RulerQa(FileTask):
    """Answer a question from the one document, or the few, that hold its answer, among many that do not.

    Questions are taken in the order of the file; the seed chooses and orders the documents around them: those of the
    same article first (SQuAD), then any. As in RULER documents repeat where there are too few. A length that they miss
    by more than a tenth, whole and in their order, is filled with shorter ones out of it.
    """

    family: ClassVar[str] = "ruler_qa"

    dataset: Literal["squad", "hotpotqa"]
    data_split: str = "validation"
    max_new_tokens: Count = 32

    def _wanted(self) -> str:
        return _WANTED[self.dataset]

    @cached_property
    def questions(self) -> QaSet:
        """All questions. Raises `UserError` where there is no data or a field is malformed."""
        data, split = self._required_data(), self.data_split
        return read_qa_set(data, self.dataset, name=self.data_name, split=split, revision=self.data_revision)

    def n_available(self) -> int:
        return len(self.questions.questions)

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        rng = self.random_stream(split=split, seed=seed, index=index)
        chosen = self.questions.questions[self.number(split=split, index=index)]
        related, rest = list(chosen.related), self.questions.unrelated_to(chosen)
        rng.shuffle(related)
        rng.shuffle(rest)
        seed_of_order = rng.getrandbits(64)
        question = f"{INSTRUCTION}Question: {chosen.text}"

        def context(others: Sequence[int]) -> str:
            numbers = [*chosen.gold, *others]
            random.Random(seed_of_order).shuffle(numbers)
            documents = (f"Document {i}:\n{self.questions.documents[one]}" for i, one in enumerate(numbers, start=1))
            return HEADER + "\n\n".join(documents) + "\n\n"

        others = self._others(
            [*related, *rest] or list(chosen.gold),
            lambda others: context(others) + question + ANSWER_PREFIX,
            length=length,
            count_tokens=count_tokens,
        )
        return Sample(
            index=index,
            context=context(others),
            question=question,
            answer_prefix=ANSWER_PREFIX,
            answers=chosen.answers,
            max_new_tokens=self.max_new_tokens,
            id=chosen.id,
        )

    def _others(
        self,
        order: Sequence[int],
        prompt: Callable[[Sequence[int]], str],
        *,
        length: int,
        count_tokens: CountTokens,
    ) -> list[int]:
        """As many documents of `order` as fit. Raises `UserError` where the prompt is too long or too short."""
        room = length - self.max_new_tokens

        def first(n: int) -> list[int]:
            return list(islice(cycle(order), n))

        n = largest_fitting(lambda n: prompt(first(n)), room=room, count_tokens=count_tokens)
        others = first(max(0, n))
        for document in order[n + 1 : n + 64] if n >= 0 else ():
            if count_tokens(prompt(others)) + self.max_new_tokens >= SHORTEST * length:
                break
            if count_tokens(prompt([*others, document])) <= room:
                others.append(document)
        checked(
            n if n < 0 else len(others),
            lambda _: prompt(others),
            unit="other documents",
            task=self.name,
            length=length,
            max_new_tokens=self.max_new_tokens,
            count_tokens=count_tokens,
        )
        return others

    def metric_name(self) -> str:
        return "string_match_part"

    def reference_answer(self, sample: Sample) -> str:
        return " " + sample.answers[0]
