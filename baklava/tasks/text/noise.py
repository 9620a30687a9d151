"""Noise text around needles, cut to a length in tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from baklava.tasks.base import CountTokens, Sample
from baklava.tasks.text.fit_length import checked

# RULER's `noise` haystack (arXiv 2404.06654): one line, repeated.
NOISE_LINE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


def put(needles: Sequence[str], places: Sequence[int], hay: Sequence[str]) -> list[str]:
    """The pieces of hay with each needle before the piece of its place; places rise."""
    pieces: list[str] = []
    done = 0
    for needle, place in zip(needles, places, strict=True):
        pieces += [*hay[done:place], needle]
        done = place
    return [*pieces, *hay[done:]]


def places_between(n_needles: int, n_pieces: int, rng: random.Random) -> list[int]:
    """Random places for needles before, between and after `n_pieces` pieces, in rising order."""
    return sorted(rng.randrange(n_pieces + 1) for _ in range(n_needles))


def hide(needles: Sequence[str], n_lines: int, rng: random.Random) -> str:
    """Needles in their order at random places among `n_lines` noise lines, one line each."""
    return "\n".join(put(needles, places_between(len(needles), n_lines, rng), [NOISE_LINE] * n_lines))


def max_noise_lines(build: Callable[[int], str], *, room: int, count_tokens: CountTokens) -> int:
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
    n_lines = max_noise_lines(build, room=length - max_new_tokens, count_tokens=count_tokens)
    return checked(
        n_lines,
        build,
        unit="noise lines",
        task=task,
        length=length,
        max_new_tokens=max_new_tokens,
        count_tokens=count_tokens,
    )


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
