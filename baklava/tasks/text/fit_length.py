"""As much text as fits into a number of tokens."""

from __future__ import annotations

from collections.abc import Callable

from baklava.errors import UserError
from baklava.tasks.base import CountTokens

SHORTEST = 0.9


def largest_fitting(build: Callable[[int], str], *, room: int, count_tokens: CountTokens) -> int:
    """An `n` with which `build(n)` takes at most `room` tokens and `build(n + 1)` more.

    That is the largest one where the number of tokens grows with `n`, as it does but for what a shuffle changes.
    Returns -1 when even `build(0)` is too long.
    """
    low, below = 0, count_tokens(build(0))
    if below > room:
        return -1
    high, above = 16, count_tokens(build(16))
    while above <= room:
        if high > 1000 * (room + 16):
            raise ValueError("the text does not grow")
        low, below = high, above
        high += 16 + high * (room + room // 32 - above) // max(1, above)  # a little beyond where a straight line ends
        above = count_tokens(build(high))
    steps = 0
    while high - low > 1:
        steps += 1  # a straight line between the ends, every third time the middle, lest one end creep
        guess = (low + high) // 2 if steps % 3 == 0 else low + (room - below) * (high - low) // (above - below)
        guess = min(max(guess, low + 1), high - 1)
        size = count_tokens(build(guess))
        if size <= room:
            low, below = guess, size
        else:
            high, above = guess, size
    return low


def checked(
    n: int,
    build: Callable[[int], str],
    *,
    unit: str,
    task: str,
    length: int,
    max_new_tokens: int,
    count_tokens: CountTokens,
) -> int:
    """`n` itself, where `build(n)` and its answer take between 0.9 and 1.0 of `length` tokens.

    Raises `UserError` where `n` is -1, since all but the units is too long, or a unit is too coarse a step.
    """
    if n < 0:
        needed = count_tokens(build(0)) + max_new_tokens
        raise UserError(
            f"task {task}: length {length} is too short: without any {unit} the prompt and {max_new_tokens} "
            f"generated tokens take {needed}; ask for a length of at least {needed}"
        )
    total = count_tokens(build(n)) + max_new_tokens
    if total < SHORTEST * length:
        raise UserError(
            f"task {task}: no sample between {SHORTEST:.1f} and 1.0 of length {length}: {n} {unit} give "
            f"{total} tokens and one more is too long; ask for a greater length"
        )
    return n


def fill(
    build: Callable[[int], str], *, unit: str, task: str, length: int, max_new_tokens: int, count_tokens: CountTokens
) -> int:
    """Number of units that brings a prompt plus its answer to within [0.9, 1.0] of `length` tokens.

    Raises `UserError` when there is none.
    """
    n = largest_fitting(build, room=length - max_new_tokens, count_tokens=count_tokens)
    return checked(
        n, build, unit=unit, task=task, length=length, max_new_tokens=max_new_tokens, count_tokens=count_tokens
    )
