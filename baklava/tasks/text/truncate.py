"""Prompts that are too long lose their middle, as in LongBench (arXiv 2308.14508, section 4.1)."""

from __future__ import annotations

from dataclasses import replace

from baklava.errors import UserError
from baklava.tasks.base import CountTokens, Sample
from baklava.tasks.text.fit_length import largest_fitting


def cut_middle(
    sample: Sample, *, task: str, place: str, length: int, count_tokens: CountTokens, keep_question: bool = False
) -> Sample:
    """The sample as it is where it fits, else with the first and the last half of the tokens that may stay.

    What stays is `length` less the generated tokens. The cut is that of the token sequence, made before any chat
    template; since it is found by counting tokens, it may lie a part of one token further than the published one.
    Raises `UserError` where the beginning of the answer, or with `keep_question` the question, would be cut.
    """
    room = length - sample.max_new_tokens
    prompt = sample.prompt
    if count_tokens(prompt) <= room:
        return sample
    special = count_tokens("")  # tokens put before every text, which the end of the prompt does not have
    half = room // 2
    head = largest_fitting(lambda n: prompt[:n], room=half, count_tokens=count_tokens)
    tail = largest_fitting(lambda n: prompt[max(0, len(prompt) - n) :], room=half + special, count_tokens=count_tokens)
    while head > 0 and count_tokens(prompt[:head] + prompt[len(prompt) - tail :]) > room:
        head -= 1  # where the two halves meet, tokens may fall apart
    end = (sample.question if keep_question else "") + sample.answer_prefix
    if head < 1 or tail < max(1, len(end)):
        needed = 2 * (count_tokens(end) + 1) + sample.max_new_tokens
        raise UserError(
            f"task {task}: {place}: cannot be cut to length {length}, {sample.max_new_tokens} of it generated: half of "
            f"the rest must hold the end of the prompt; ask for a length of at least {needed}"
        )
    question_at, answer_at = len(sample.context), len(sample.context) + len(sample.question)
    goes_on = max(head + 1, len(prompt) - tail)

    def kept(start: int, end: int) -> str:
        return prompt[start : min(end, head)] + prompt[max(start, goes_on) : end]

    return replace(sample, context=kept(0, question_at), question=kept(question_at, answer_at))
