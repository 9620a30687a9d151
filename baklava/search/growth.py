"""Growth: shares that grow from next to nothing, at each step where their influence says that memory is worth most.

First-order changes predict well what a KV cache gains by keeping more, and badly what it loses by keeping less. So
shares only ever grow, along a ladder of totals that does not depend on the ratios asked for: no share falls from one
rung to the next, and the budgets of a ratio lie between two rungs. More memory then takes nothing from any KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baklava.allocation.fitted import Shares
from baklava.allocation.knapsack import lower_hull
from baklava.budgets import Budgets
from baklava.budgets.bits import Bits
from baklava.calibration.prompts import Prompt
from baklava.inference.continuation_loss import InfluenceSource
from baklava.inference.influence import LEVELS
from baklava.search.allowance import GRADIENT_ROWS, Allowance
from baklava.system.progress import Progress

START = 0.01  # share of every KV cache at the foot of the ladder
FACTOR = 1.25  # from the total of one rung to that of the next
MAX_GAIN = 0.3  # share that a KV cache gains in one step: influence is exact for small changes only
REFINE_AT = 0.05  # the first rung from here on is refined: what is missing that far down is missed by every rung above
SHRINK = 0.6  # the part of its shares from which a rung grows anew in the first round of refinement
MAX_GAINS_ANEW = (0.15, 0.6)  # tried in each round
HELD_BACK = 0.25  # fraction of the prompts that no step looks at; they have to agree that a refined rung is better


@dataclass(frozen=True, eq=False)
class Rung:
    """Shares `[G]`, their losses on the prompts that the steps looked at and on those held back, and as budgets."""

    shares: Shares
    loss: float
    held_back: float
    budgets: Budgets


@dataclass
class Growth:
    """The ladder of one model and eviction policy, with `shape` (layers, KV heads).

    Shares are those of `G` groups of `group` neighbouring KV heads, whose influence is summed; by default of single KV
    caches.
    """

    source: InfluenceSource
    prompts: Sequence[Prompt]
    shape: tuple[int, int]
    progress: Progress
    allowance: Allowance = field(default_factory=Allowance)
    group: int = 1
    rungs: list[Shares] = field(default_factory=list)
    n_refined: int = 0

    def climb(self, total: float, *, refine: int) -> None:
        """Grow until the shares' mean is at least `total`, with up to `refine` rounds at the rung of `REFINE_AT`.

        Where the allowance ends before, shares above the last rung rise evenly to those of the full cache.
        """
        self.progress.total = self._count_readings(total, refine)
        lowest = np.full(self.n_groups, START)
        while lowest.mean() < REFINE_AT and self.allowance.is_left():
            lowest = self._next(lowest)
        self.rungs = [self._refine(lowest, refine)]
        while self.rungs[-1].mean() < total - 1e-9:
            above = self._next(self.rungs[-1]) if self.allowance.is_left() else np.ones_like(lowest)
            self.rungs.append(above)

    def _count_readings(self, total: float, refine: int) -> int:
        """How many prompts are read about, the last measurements included."""

        def steps(start: float, end: float) -> int:
            return max(0, ceil(log(end / start) / log(FACTOR)))

        n_low = steps(START, REFINE_AT)
        anew = refine * len(MAX_GAINS_ANEW) * steps(SHRINK, 1.0)
        n_steps = n_low + anew + steps(START * FACTOR**n_low, total)
        return n_steps * len(self._looked_at) + (2 + refine) * len(self.prompts)

    def shares(self, total: float) -> Shares:
        """Shares with the mean `total`, between those of the rungs above and below it; above all, the full cache's."""
        rungs = [np.zeros_like(self.rungs[0]), *self.rungs]
        if total > self.rungs[-1].mean() + 1e-9:
            rungs.append(np.ones_like(self.rungs[0]))
        means = [rung.mean() for rung in rungs]
        above = min(int(np.searchsorted(means, total)), len(rungs) - 1)
        below = max(above - 1, 0)
        weight = (total - means[below]) / (means[above] - means[below])
        return np.clip(rungs[below] + weight * (rungs[above] - rungs[below]), 0.0, 1.0)

    def measure(self, candidates: Sequence[Shares], stored: Sequence[Budgets] | None = None) -> list[Rung]:
        """Candidates with their losses, all from one prefill of each prompt; `stored` are their budgets in bits."""
        budgets = [self.budgets(shares) for shares in candidates] if stored is None else stored
        losses = np.array([self.source.losses(prompt, budgets) for prompt in self.prompts])
        self.allowance.spend(self.prompts, len(budgets), of=len(self.prompts))
        self.progress.update(len(self.prompts))
        n = len(self._looked_at)
        held_back = losses[n:].mean(0) if n < len(losses) else np.full(len(candidates), np.nan)
        return [Rung(*values) for values in zip(candidates, losses[:n].mean(0), held_back, budgets, strict=True)]

    def budgets(self, shares: Shares, **stored: Any) -> Budgets:
        return Budgets.from_shares(np.repeat(shares, self.group).reshape(self.shape), **stored)

    def precision(self, shares: Shares, bits: Bits, widths: Sequence[int]) -> NDArray[np.float64]:
        """First-order change of the loss `[2, W, N]` if keys, or values, had another width than in `bits` `[N, 2]`."""
        budgets = self.budgets(shares, bits=bits.reshape(*self.shape, 2))
        influence = self.source.precision(self._looked_at, budgets, widths)
        self.allowance.spend(self._looked_at, GRADIENT_ROWS, of=len(self.prompts))
        self.progress.update(len(self._looked_at))
        return influence.reshape(2, len(widths), -1)

    @property
    def n_groups(self) -> int:
        """How many shares there are."""
        return self.shape[0] * self.shape[1] // self.group

    @property
    def n_prompts(self) -> tuple[int, int]:
        """How many prompts the steps look at, and how many are held back."""
        return len(self._looked_at), len(self.prompts) - len(self._looked_at)

    @property
    def _looked_at(self) -> Sequence[Prompt]:
        return self.prompts[: len(self.prompts) - int(HELD_BACK * len(self.prompts))]

    def _refine(self, shares: Shares, rounds: int) -> Shares:
        """Shrink a rung and grow it anew, as long as that lowers the loss; else shrink less.

        What was added for want of something that came later is then not added again.
        """
        kept = SHRINK
        [best] = self.measure([shares])
        for _ in range(rounds):
            if not self.allowance.is_left():
                break
            anew = [self._regrow(best.shares * kept, best.shares.mean(), gain) for gain in MAX_GAINS_ANEW]
            rung = min(self.measure(anew), key=lambda rung: rung.loss)
            if rung.loss < best.loss and not rung.held_back > best.held_back:
                best = rung
                self.n_refined += 1
            else:
                kept = 1.0 - (1.0 - kept) / 2.0
        return best.shares

    def _next(self, rung: Shares) -> Shares:
        return self._grow(rung, min(1.0, rung.mean() * FACTOR), MAX_GAIN)

    def _regrow(self, shares: Shares, total: float, gain: float) -> Shares:
        while (mean := shares.mean()) < total - 1e-9:
            shares = self._grow(shares, min(total, mean * FACTOR), gain)
        return shares

    def _grow(self, shares: Shares, total: float, gain: float) -> Shares:
        """Shares that grow to the mean `total`, no KV cache by more than `gain`."""
        influence = self.source.influence(self._looked_at, self.budgets(shares))
        self.allowance.spend(self._looked_at, GRADIENT_ROWS, of=len(self.prompts))
        self.progress.update(len(self._looked_at))
        flat = influence.reshape(len(LEVELS), -1, self.group).sum(-1)
        return spend(shares, np.array(LEVELS), flat, total=total * len(shares), gain=gain)


def spend(
    shares: Shares, levels: NDArray[np.float64], influence: NDArray[np.float64], *, total: float, gain: float
) -> Shares:
    """Raise shares `[N]` to the sum `total` where influence `[K, N]` at the levels `[K]` promises most per share.

    Memory goes to the steepest segment of any KV cache's lower convex hull between its share and `gain` above it. Where
    nothing is promised any more, the remainder is spread evenly over what is free.
    """
    grown = shares.copy()
    segments: list[tuple[float, int, int, float]] = []  # slope, KV cache, corner, length
    for cache, share in enumerate(shares):
        end = min(1.0, share + gain)
        if end <= share:
            continue
        x = np.array([share, *levels[(levels > share) & (levels < end)], end])
        y = np.minimum.accumulate([0.0, *np.interp(x[1:], levels, influence[:, cache])])
        for a, b in pairwise(lower_hull(x, y)):
            if y[b] < y[a]:
                segments.append(((y[b] - y[a]) / (x[b] - x[a]), cache, a, x[b] - x[a]))
    left = total - shares.sum()
    for _, cache, _, length in sorted(segments):  # the steepest first
        if left <= 0.0:
            break
        spent = min(length, left)
        grown[cache] += spent
        left -= spent
    if left > 0.0:
        free = 1.0 - grown
        grown += free * min(1.0, left / free.sum()) if free.sum() else 0.0
    return np.minimum(grown, 1.0)
