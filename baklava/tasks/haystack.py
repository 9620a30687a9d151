"""Noise text around needles, cut to a length in tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from baklava.errors import UserError
from baklava.tasks.base import CountTokens, Sample

# RULER's `noise` haystack (arXiv 2404.06654): one line, repeated.
NOISE_LINE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

SHORTEST = 0.9


def hide(needles: Sequence[str], n_lines: int, rng: random.Random) -> str:
    """Needles in their order at random places among `n_lines` noise lines, one line each."""
    places = sorted(rng.randrange(n_lines + 1) for _ in needles)
    lines: list[str] = []
    done = 0
    for place, needle in zip(places, needles, strict=True):
        lines += [NOISE_LINE] * (place - done) + [needle]
        done = place
    return "\n".join(lines + [NOISE_LINE] * (n_lines - done))


def most_noise_lines(build: Callable[[int], str], *, room: int, count_tokens: CountTokens) -> int:
    """Largest number of noise lines with which `build(n_lines)` takes at most `room` tokens.

    Returns -1 when even no noise at all is too long.
    """
    bare, filled = count_tokens(build(0)), count_tokens(build(16))
    if bare > room:
        return -1
    n_lines = max(0, (room - bare) * 16 // max(1, filled - bare))
    while n_lines > 0 and count_tokens(build(n_lines)) > room:
        n_lines -= 1
    return n_lines


def fit(
    build: Callable[[int], str],
    *,
    task: str,
    length: int,
    max_new_tokens: int,
    count_tokens: CountTokens,
) -> int:
    """Number of noise lines that brings a prompt plus its answer to within [0.9, 1.0] of `length` tokens.

    Raises `UserError` when there is none: the needles and the question alone are too long, or one noise line is
    too coarse a step for so short a length.
    """
    n_lines = most_noise_lines(build, room=length - max_new_tokens, count_tokens=count_tokens)
    if n_lines < 0:
        needed = count_tokens(build(0)) + max_new_tokens
        raise UserError(
            f"task {task}: length {length} is too short: the needles, the question and {max_new_tokens} "
            f"generated tokens take {needed}; ask for a length of at least {needed}"
        )
    total = count_tokens(build(n_lines)) + max_new_tokens
    if total < SHORTEST * length:
        raise UserError(
            f"task {task}: no sample between {SHORTEST:.1f} and 1.0 of length {length}: {n_lines} noise lines give "
            f"{total} tokens and one more is too long; ask for a greater length"
        )
    return n_lines


def in_noise(
    sample: Sample, context: Callable[[int], str], *, task: str, length: int, count_tokens: CountTokens
) -> Sample:
    """`sample` with `context(n_lines)` for its context, at most `length` tokens long including the generated ones."""
    n_lines = fit(
        lambda n: context(n) + sample.question + sample.answer_prefix,
        task=task,
        length=length,
        max_new_tokens=sample.max_new_tokens,
        count_tokens=count_tokens,
    )
    return replace(sample, context=context(n_lines))
