"""Successive samples that ask about one context, which must be the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from baklava.tasks.base import CountTokens, Sample
from baklava.tasks.text.fit_length import fill_context

Question = tuple[str, str]  # and the beginning of its answer


def split_index(index: int, n_questions: int) -> tuple[int, int]:
    """Split the index of a sample into that of its context, and that of its question among those about it."""
    return divmod(index, n_questions)


def fill_shared_context(
    sample: Sample,
    context: Callable[[int], str],
    questions: Sequence[Question],
    nth_question: int,
    *,
    unit: str,
    task: str,
    length: int,
    count_tokens: CountTokens,
) -> Sample:
    """Give `sample` one of the questions, and the longest `context(n)` that leaves room for each of them.

    Raises `LengthError` as `fill_context`.
    """
    question, answer_prefix = max(questions, key=lambda question: count_tokens("".join(question)))
    longest = replace(sample, question=question, answer_prefix=answer_prefix)
    filled = fill_context(longest, context, unit=unit, task=task, length=length, count_tokens=count_tokens)
    question, answer_prefix = questions[nth_question]
    return replace(filled, question=question, answer_prefix=answer_prefix)
