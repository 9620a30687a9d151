"""The BaKlaVa allocation: importance to shares through a parametric mapping (arXiv 2502.13176, sections 3-4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from baklava.allocate.base import Allocator
from baklava.errors import UserError

if TYPE_CHECKING:
    from baklava.profile import Profile


def fill(weights: NDArray[np.float64], *, total: float, floor: float) -> NDArray[np.float64]:
    """Shares `floor + c * weight`, cut at 1, with `c` such that they sum to `total`.

    Where the weights run out (all remaining ones are zero) the rest is spread evenly over the caches below 1.
    A floor above the mean share is lowered to it.
    """
    n = weights.size
    floor = min(floor, total / n)
    shares = np.full(n, floor)
    open_ = np.ones(n, dtype=bool)
    left = total - shares.sum()
    while left > 1e-12 and open_.any():
        weight = np.where(open_, weights, 0.0)
        if weight.sum() <= 0:
            weight = open_.astype(float)
        grown = shares + left * weight / weight.sum()
        full = open_ & (grown >= 1.0)
        if not full.any():
            shares = grown
            break
        shares[full] = 1.0  # the largest are whole; what they leave goes to the others in proportion
        open_ &= ~full
        shares[open_] = floor
        left = total - shares.sum()
    return np.clip(shares + (total - shares.sum()) / n * (shares < 1.0), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Baklava(Allocator):
    """More memory for the KV caches of higher importance.

    With importance scaled to [0, 1], head and layer importance mixed, the share is
    `floor + c * importance ** slope`, cut at 1, after the most important `whole` part of the budget has gone to
    caches kept whole. `slope` 0 and `whole` 0 are the uniform allocation; a steep slope fills caches in order of
    importance.

    With `search` (the default) the parameters are starting values and the search picks them per ratio, among all
    estimators that the profile holds.
    """

    family: ClassVar[str] = "baklava"

    search: bool = True
    estimator: str = "eviction_shift"
    pool: str = "mean"
    layer_mix: float = 0.0
    slope: float = 2.0
    floor: float = 0.02
    whole: float = 0.0

    def importance(self, profile: Profile) -> NDArray[np.float64]:
        """Head importance pooled over the GQA group and mixed with layer importance, in [0, 1], `[L, Hkv]`."""
        head = _scaled(profile.kv_importance(self.estimator, pool=self.pool))
        layer = _scaled(profile.layer_importance.mean(0))
        return (1.0 - self.layer_mix) * head + self.layer_mix * layer[:, None]

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        if self.estimator not in profile.head_importance:
            known = ", ".join(profile.head_importance)
            raise UserError(f"allocator {self.name}: the profile holds no estimator {self.estimator!r}; it has {known}")
        importance = self.importance(profile).ravel()
        total = (1.0 - ratio) * importance.size
        shares = np.zeros(importance.size)
        whole = np.argsort(-importance, kind="stable")[: int(self.whole * total)]
        rest = np.setdiff1d(np.arange(importance.size), whole)
        shares[whole] = 1.0
        shares[rest] = fill(importance[rest] ** self.slope, total=total - len(whole), floor=self.floor)
        return shares.reshape(profile.n_layers, profile.n_kv_heads)

    def candidates(self, profile: Profile, *, n: int, seed: int) -> Sequence[Allocator]:
        """`n` mappings per estimator: the starting values, plain filling in order, then a quasi-random sweep."""
        if not self.search:
            return [self]
        from scipy.stats import qmc

        fixed = [self, replace(self, slope=32.0), replace(self, slope=1.0), replace(self, whole=0.7, slope=1.0)][:n]
        sweep = qmc.Sobol(d=5, seed=seed).random(max(0, n - len(fixed)))
        swept = [
            replace(
                self,
                layer_mix=float(0.5 * u[0] if u[0] > 0.5 else 0.0),
                slope=float(32.0 ** (1.2 * u[1] - 0.2)),
                floor=float(0.08 * u[2]),
                whole=float(0.95 * u[3]),
                pool="mean" if u[4] < 0.5 else "max",
            )
            for u in sweep
        ]
        return [
            replace(candidate, estimator=estimator)
            for estimator in profile.head_importance
            for candidate in (*fixed, *swept)
        ]


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """To [0, 1], smallest to 0 and largest to 1; all equal: all 1."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.ones_like(values)
