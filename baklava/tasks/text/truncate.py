"""Prompts that are too long lose their middle, as in LongBench (arXiv 2308.14508, section 4.1)."""

from __future__ import annotations

from dataclasses import replace

from baklava.errors import LengthError
from baklava.tasks.base import CountTokens, Sample
from baklava.tasks.text.fit_length import largest_fitting


def cut_middle(
    sample: Sample, *, task: str, location: str, length: int, count_tokens: CountTokens, keep_question: bool = False
) -> Sample:
    """Cut the middle out of a prompt that does not fit, so that its first and last tokens stay, half of each.

    `length` minus the generated tokens stay. As published, tokens are cut before any chat template is applied; but the
    cut is found by counting tokens, and so may be off by a fraction of a token. `location` is named in messages. Raises
    `LengthError` if the answer prefix, or with `keep_question` the question, would be cut.
    """
    room = length - sample.max_new_tokens
    prompt = sample.prompt
    if count_tokens(prompt) <= room:
        return sample
    special = count_tokens("")  # tokens before every text; the end of the prompt has none
    half = room // 2
    head = largest_fitting(lambda n: prompt[:n], room=half, count_tokens=count_tokens)
    tail = largest_fitting(lambda n: prompt[max(0, len(prompt) - n) :], room=half + special, count_tokens=count_tokens)
    while head > 0 and count_tokens(prompt[:head] + prompt[len(prompt) - tail :]) > room:
        head -= 1  # the joint may split into more tokens
    end = (sample.question if keep_question else "") + sample.answer_prefix
    if head < 1 or tail < max(1, len(end)):
        needed = 2 * (count_tokens(end) + 1) + sample.max_new_tokens
        raise LengthError(
            f"task {task}: {location}: cannot be cut to length {length}, {sample.max_new_tokens} of it generated: "
            f"half of the rest must hold the end of the prompt; ask for a length of at least {needed}"
        )
    question_at, answer_at = len(sample.context), len(sample.context) + len(sample.question)
    tail_at = max(head + 1, len(prompt) - tail)

    def kept(start: int, end: int) -> str:
        return prompt[start : min(end, head)] + prompt[max(start, tail_at) : end]

    return replace(sample, context=kept(0, question_at), question=kept(question_at, answer_at))
