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
from baklava.tasks.text.fit_length import MIN_FILL, check_length, largest_fitting

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

    Questions come in the order of the file; the seed chooses and orders the documents around them: those of the same
    article first (SQuAD), then any. As in RULER, documents repeat if there are too few. If complete documents in their
    order miss the length by more than a tenth, shorter ones that come later fill it.
    """

    family: ClassVar[str] = "ruler_qa"

    dataset: Literal["squad", "hotpotqa"]
    data_split: str = "validation"
    max_new_tokens: Count = 32

    def _wanted(self) -> str:
        return _WANTED[self.dataset]

    @cached_property
    def questions(self) -> QaSet:
        """All questions. Raises `UserError` if there is no data or a field is malformed."""
        data, split = self._required_data(), self.data_split
        return read_qa_set(data, self.dataset, name=self.data_name, split=split, revision=self.data_revision)

    def n_available(self) -> int:
        return len(self.questions.questions)

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        rng = self.random_stream(split=split, seed=seed, index=index)
        question = self.questions.questions[self.number(split=split, index=index)]
        related, unrelated = list(question.related), self.questions.unrelated_to(question)
        rng.shuffle(related)
        rng.shuffle(unrelated)
        seed_of_order = rng.getrandbits(64)

        def build(others: Sequence[int]) -> Sample:
            numbers = [*question.gold, *others]
            random.Random(seed_of_order).shuffle(numbers)
            texts = [self.questions.documents[number] for number in numbers]
            documents = "".join(f"Document {i}:\n{text}\n\n" for i, text in enumerate(texts, start=1))
            return Sample(
                index=index,
                context=HEADER + documents,
                question=f"{INSTRUCTION}Question: {question.text}",
                answer_prefix=ANSWER_PREFIX,
                answers=question.answers,
                max_new_tokens=self.max_new_tokens,
                id=question.id,
            )

        order = [*related, *unrelated] or list(question.gold)
        return self._fill_context(build, order, length=length, count_tokens=count_tokens)

    def _fill_context(
        self, build: Callable[[Sequence[int]], Sample], order: Sequence[int], *, length: int, count_tokens: CountTokens
    ) -> Sample:
        """Build the sample with as many documents of `order` as fit.

        Raises `UserError` if it is too long or too short.
        """
        room = length - self.max_new_tokens

        def first(n: int) -> list[int]:
            return list(islice(cycle(order), n))

        n = largest_fitting(lambda n: build(first(n)).prompt, room=room, count_tokens=count_tokens)
        others = first(max(0, n))
        for document in order[n + 1 : n + 64] if n >= 0 else ():
            if count_tokens(build(others).prompt) + self.max_new_tokens >= MIN_FILL * length:
                break
            if count_tokens(build([*others, document]).prompt) <= room:
                others.append(document)
        sample, n_others = build(others), n if n < 0 else len(others)
        check_length(sample, n_others, unit="other documents", task=self.name, length=length, count_tokens=count_tokens)
        return sample

    def metric_name(self) -> str:
        return "string_match_part"

    def reference_answer(self, sample: Sample) -> str:
        return " " + sample.answers[0]
