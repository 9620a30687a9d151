"""Lines of noise, and needles between them."""

from __future__ import annotations

import random
from collections.abc import Sequence

# RULER's `noise` haystack (arXiv 2404.06654): one line, repeated.
NOISE_LINE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

GOLDEN_RATIO = (5**0.5 - 1) / 2


def insert_needles(needles: Sequence[str], positions: Sequence[int], hay: Sequence[str]) -> list[str]:
    """Insert each needle before the piece of hay at its position; `positions` are in rising order."""
    pieces: list[str] = []
    start = 0
    for needle, position in zip(needles, positions, strict=True):
        pieces += [*hay[start:position], needle]
        start = position
    return [*pieces, *hay[start:]]


def draw_positions(n_needles: int, n_pieces: int, rng: random.Random) -> list[int]:
    """Draw random positions for needles before, between and after `n_pieces` pieces, in rising order."""
    return sorted(rng.randrange(n_pieces + 1) for _ in range(n_needles))


def spread_positions(n_needles: int, n_pieces: int, index: int) -> list[int]:
    """Choose positions for needles that samples with successive indices spread evenly over all depths, in rising order.

    The needles of one sample are equally far apart; from sample to sample they move on by the golden ratio, so that any
    few samples, and every second or third of them, cover all depths.
    """
    depths = ((index * GOLDEN_RATIO + needle / n_needles) % 1.0 for needle in range(n_needles))
    return sorted(int(depth * (n_pieces + 1)) for depth in depths)


def positions_at(
    depth: float | None, n_needles: int, n_pieces: int, *, split: str, index: int, rng: random.Random
) -> list[int]:
    """Choose positions for needles, in rising order: one after the other from `depth` on, or random ones.

    `depth` is the fraction of the pieces before them. Without it, few calibration samples cover all depths.
    """
    if depth is not None:
        return [round(depth * n_pieces)] * n_needles
    if split == "calibration":
        return spread_positions(n_needles, n_pieces, index)
    return draw_positions(n_needles, n_pieces, rng)


def hide_in_noise(needles: Sequence[str], n_lines: int, rng: random.Random) -> str:
    """Insert needles in their order at random positions among `n_lines` lines of noise, one line each."""
    positions = draw_positions(len(needles), n_lines, rng)
    return "\n".join(insert_needles(needles, positions, [NOISE_LINE] * n_lines))
