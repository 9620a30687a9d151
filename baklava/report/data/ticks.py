"""Ticks of logarithmic axes: round numbers that are written in full."""

from __future__ import annotations

import math

MIN_TICKS = 3


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... from `low` to `high`; even steps where the range is too narrow for three of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5)):
        ticks = [round(step * 10.0**power, 12) for power in powers for step in steps]
        shown = [tick for tick in ticks if low <= tick <= high]
        if len(shown) >= MIN_TICKS + (len(steps) == 1):
            return shown
    size = 10.0 ** math.floor(math.log10((high - low) / MIN_TICKS)) if high > low else 0.0
    if not size:
        return [low]
    step = next((size * factor for factor in (5, 2) if (high - low) / (size * factor) >= MIN_TICKS), size)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]


def format_tick(tick: float) -> str:
    return f"{tick:g}"
