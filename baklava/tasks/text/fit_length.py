"""As much text as fits into a number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from baklava.errors import LengthError
from baklava.tasks.base import CountTokens, Sample

MIN_FILL = 0.9  # a sample takes at least this fraction of the length that was asked for


def largest_fitting(build: Callable[[int], str], *, room: int, count_tokens: CountTokens) -> int:
    """Find an `n` with which `build(n)` takes at most `room` tokens and `build(n + 1)` more.

    It is the largest such `n` if the number of tokens grows with `n`, as it does except for what a shuffle changes.
    Returns -1 if even `build(0)` is too long.
    """
    low, tokens_low = 0, count_tokens(build(0))
    if tokens_low > room:
        return -1
    high, tokens_high = 16, count_tokens(build(16))
    while tokens_high <= room:
        if high > 1000 * (room + 16):
            raise ValueError("the text does not grow")
        low, tokens_low = high, tokens_high
        # Extrapolate linearly, and go a little beyond.
        high += 16 + high * (room + room // 32 - tokens_high) // max(1, tokens_high)
        tokens_high = count_tokens(build(high))
    steps = 0
    while high - low > 1:
        steps += 1  # interpolate linearly, but bisect at every third step in case one end hardly moves
        bisect = steps % 3 == 0
        guess = (low + high) // 2 if bisect else low + (room - tokens_low) * (high - low) // (tokens_high - tokens_low)
        guess = min(max(guess, low + 1), high - 1)
        tokens = count_tokens(build(guess))
        if tokens <= room:
            low, tokens_low = guess, tokens
        else:
            high, tokens_high = guess, tokens
    return low


def fill_context(
    sample: Sample,
    context: Callable[[int], str],
    *,
    unit: str,
    task: str,
    length: int,
    count_tokens: CountTokens,
) -> Sample:
    """Give `sample` the longest `context(n)` with which it and its answer take at most `length` tokens.

    `unit` names what `n` counts, for messages. Raises `LengthError` as `check_length`.
    """

    def prompt(n: int) -> str:
        return context(n) + sample.question + sample.answer_prefix

    n = largest_fitting(prompt, room=length - sample.max_new_tokens, count_tokens=count_tokens)
    filled = replace(sample, context=context(max(0, n)))
    check_length(filled, n, unit=unit, task=task, length=length, count_tokens=count_tokens)
    return filled


def check_length(sample: Sample, n: int, *, unit: str, task: str, length: int, count_tokens: CountTokens) -> None:
    """Raise `LengthError` unless `sample` and its answer take between 0.9 and 1.0 of `length` tokens.

    `n` is the number of units in its context, -1 where the sample is too long without any.
    """
    total = count_tokens(sample.prompt) + sample.max_new_tokens
    if n < 0:
        raise LengthError(
            f"task {task}: length {length} is too short: without any {unit} the prompt and {sample.max_new_tokens} "
            f"generated tokens take {total}; ask for a length of at least {total}"
        )
    if total < MIN_FILL * length:
        raise LengthError(
            f"task {task}: no sample between {MIN_FILL:.1f} and 1.0 of length {length}: {n} {unit} give "
            f"{total} tokens and one more is too long; ask for a greater length"
        )
