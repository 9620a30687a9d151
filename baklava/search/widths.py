"""Widths: in how many bits KV caches store their entries, found along with their shares for one total of bytes.

All in one width is where a ratio starts: as many entries as its bytes then hold, in shares that have grown. From there
each KV cache may get bits of its own, for keys and for values. As shares, bits only ever rise, from the coarsest width
of all and by measured influence: what a first-order change says of storing more coarsely is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice, pairwise

import numpy as np
from numpy.typing import NDArray

from baklava.allocation.base import Width, entries_removed
from baklava.allocation.fitted import GROWN, Grown, Shares
from baklava.allocation.knapsack import lower_hull
from baklava.budgets import Budgets
from baklava.budgets.bits import EXACT, Bits, EntrySize
from baklava.inference.continuation_loss import check_losses
from baklava.search.growth import Growth, Rung

STEPS = 2  # in which bits are raised: the first mend what loses most, which then hides the others no more
NEGLIGIBLE = 0.001  # of all that more bits promise at first: what is below buys entries instead

Stored = tuple[Shares, Budgets]  # shares that grew, and as budgets with their bits


def search_widths(
    growth: Growth, ratios: Sequence[float], widths: Sequence[Width], *, per_cache: bool, model: str
) -> dict[float, Grown]:
    """Shares and bits for every ratio, of a growth that has climbed as far as the coarsest of the widths reaches.

    Raises `UserError` where losses are not finite.
    """
    exact = [np.ones(growth.n_groups), *(np.full(growth.n_groups, 1.0 - ratio) for ratio in ratios)]
    quantised = [_in_width(growth, ratio, width) for ratio in ratios for width in widths]
    rungs = _measure(growth, [*((shares, growth.budgets(shares)) for shares in exact), *quantised], model)
    full, uniform, of_widths = rungs[0], rungs[1 : len(exact)], rungs[len(exact) :]
    by_ratio = [of_widths[start : start + len(widths)] for start in range(0, len(of_widths), len(widths))]
    by_cache: list[list[Rung]] = [[] for _ in ratios]
    if per_cache:
        stored = [
            _around(growth, ratio, widths[rungs.index(choose(growth, rungs))], widths)
            for ratio, rungs in zip(ratios, by_ratio, strict=True)
        ]
        measured = iter(_measure(growth, list(chain(*stored)), model))
        by_cache = [list(islice(measured, len(some))) for some in stored]
    return {
        ratio: _grown(growth, full, even, one, own)
        for ratio, even, one, own in zip(ratios, uniform, by_ratio, by_cache, strict=True)
    }


def _measure(growth: Growth, stored: Sequence[Stored], model: str) -> list[Rung]:
    if not stored:
        return []
    shares, budgets = zip(*stored, strict=True)
    rungs = growth.measure(shares, budgets)
    check_losses([rung.loss for rung in rungs], model=model)
    return rungs


def _grown(growth: Growth, full: Rung, uniform: Rung, one: Sequence[Rung], own: Sequence[Rung]) -> Grown:
    best = choose(growth, one, own)
    others = [(f"{GROWN}, {rung.budgets.width} bits", rung) for rung in one]
    others += [(f"{GROWN}, bits per KV cache", rung) for rung in own]
    return Grown(
        np.repeat(best.shares, growth.group),
        full.loss,
        uniform.loss,
        best.loss,
        uniform.held_back,
        best.held_back,
        len(growth.prompts),
        EXACT if best.budgets.bits is None else best.budgets.bits,
        [(move, rung.loss, rung.held_back) for move, rung in others if rung is not best],
    )


def _in_width(growth: Growth, ratio: float, width: Width) -> Stored:
    """All KV caches in one width, with the shares that the bytes of a ratio then hold."""
    total = 1.0 - entries_removed(ratio, width)
    shares = growth.shares(total) if total < 1.0 else np.ones(growth.n_groups)
    return shares, growth.budgets(shares, **({} if width == EXACT else {"ratio": ratio, "bits": width}))


def _around(growth: Growth, ratio: float, best: Width, widths: Sequence[Width]) -> list[Stored]:
    """Widths per KV cache for the bytes of a ratio: with as many entries as in the `best` width, and with some more."""
    known = sorted({width for pair in widths for width in ((pair,) if isinstance(pair, int) else pair)})
    own = _price((best, best) if isinstance(best, int) else best)
    below = max((price for width in known if (price := _price((width, width))) < own), default=own)
    totals = dict.fromkeys(min(1.0, (1.0 - ratio) / price) for price in (own, own**0.75 * below**0.25))
    return [_per_cache(growth, ratio, total, known) for total in totals if growth.allowance.is_left()]


def _per_cache(growth: Growth, ratio: float, total: float, widths: Sequence[int]) -> Stored:
    """Bits per KV cache, raised from the coarsest where influence says that bytes are worth most.

    They are raised in `STEPS` steps, at the shares of mean `total`; what is then left of the bytes of the ratio goes to
    more entries.
    """
    shares, left = growth.shares(total), (1.0 - ratio) * growth.shape[0] * growth.shape[1]
    bits = np.full((len(shares), 2), widths[0])
    start, negligible = shares.sum() * _price((widths[0], widths[0])), 0.0
    for step in range(1, STEPS + 1):
        promise = growth.precision(shares, bits, widths)
        within = start + (left - start) * step / STEPS
        negligible = negligible or NEGLIGIBLE * float(-promise.min(1).clip(max=0.0).sum())
        bits = raise_bits(shares, bits, promise, widths, total=within, negligible=negligible, skip=step == STEPS)
    costs = EntrySize().relative(bits)
    shares = np.ones_like(shares)
    if costs.sum() > left:
        low, high = 0.0, 1.0
        while high - low > 1e-12:
            middle = (low + high) / 2
            low, high = (middle, high) if growth.shares(middle) @ costs <= left else (low, middle)
        shares = growth.shares(low)
    return shares, growth.budgets(shares, ratio=ratio, bits=bits.reshape(*growth.shape, 2))


def raise_bits(
    shares: Shares,
    bits: Bits,
    promise: NDArray[np.float64],
    widths: Sequence[int],
    *,
    total: float,
    negligible: float = 0.0,
    skip: bool = True,
) -> Bits:
    """Raise `bits` `[N, 2]` of KV caches with `shares` `[N]` within `total` bytes, relative to exact entries.

    `promise` `[2, W, N]` is the change of the loss if keys, or values, had one of the rising `widths` instead. Bytes go
    to the steepest segments of lower hulls while more than `negligible` is promised. One that cannot be paid is
    skipped, or ends it.
    """
    chosen = np.searchsorted(widths, bits)
    costs = np.array([[_price((width, EXACT)), _price((EXACT, width))] for width in widths])  # [W, 2]
    segments: list[tuple[float, float, int, int, int, int]] = []  # slope, gain, KV cache, keys or values, from, to
    for cache, part in np.ndindex(chosen.shape):
        first = int(chosen[cache, part])
        x = shares[cache] * costs[first:, part]
        y = np.minimum.accumulate(promise[part, first:, cache] - promise[part, first, cache])
        if shares[cache] > 1e-9:
            hull = pairwise(lower_hull(x, y))
            gains = [(a, b, float(y[b] - y[a]), float(x[b] - x[a])) for a, b in hull]
            segments += [
                (gain / price, gain, cache, part, first + a, first + b) for a, b, gain, price in gains if gain < 0
            ]
    left = total - shares @ EntrySize().relative(bits)
    promised = -sum(gain for _, gain, *_ in segments)
    for _, gain, cache, part, a, b in sorted(segments):  # the steepest first
        price = shares[cache] * (costs[b, part] - costs[a, part])
        if promised <= negligible or (price > left and not skip):
            break
        if chosen[cache, part] == a and price <= left + 1e-12:
            chosen[cache, part] = b
            left -= price
            promised += gain
    return np.array(widths)[chosen]


def choose(growth: Growth, one: Sequence[Rung], own: Sequence[Rung] = ()) -> Rung:
    """The rung in one width that loses least, or the best with bits per KV cache where all prompts agree that it is.

    The width is chosen on all prompts: in few bits, few prompts lose hundreds of times more than the others, and of
    those held back none may be such a one. Bits per KV cache have to lose less on both.
    """
    n, n_held_back = growth.n_prompts
    weight = n_held_back / (n + n_held_back)
    best = min(one, key=lambda rung: (1.0 - weight) * rung.loss + (weight * rung.held_back if n_held_back else 0.0))
    for rung in sorted(own, key=lambda rung: rung.loss)[:1]:
        if rung.loss < best.loss and not rung.held_back > best.held_back:
            return rung
    return best


def _price(pair: tuple[int, int]) -> float:
    """Bytes of an entry with these bits for keys and values, as a fraction of an exact one's."""
    return float(EntrySize().relative(np.array(pair)))
