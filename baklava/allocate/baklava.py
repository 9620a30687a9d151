"""The BaKlaVa allocation: importance to shares through a parametric mapping (arXiv 2502.13176, sections 3-4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from baklava.allocate.base import Allocator
from baklava.errors import UserError
from baklava.importance import CONTROLS, ESTIMATORS

if TYPE_CHECKING:
    from baklava.profile import Profile

Part = Annotated[float, Field(ge=0.0, le=1.0)]

# Weights below this part of the largest count as zero; they would overflow when divided by.
NEGLIGIBLE = 1e-200


def fill(
    weights: NDArray[np.float64], *, total: float, floor: float, start: NDArray[np.float64] | float = 0.0
) -> NDArray[np.float64]:
    """Shares `max(floor, start) + c * weight`, cut at 1, with `c` such that they sum to `total`.

    `start` `[N]` must not sum to more than `total`. Where it and the floor do so together, the floor is lowered.
    Where the weights run out (all caches with a positive one are whole) the rest is spread evenly over the others.
    """
    begun = np.full(weights.size, start)
    lift = np.maximum(floor - begun, 0.0)
    affordable = max(0.0, total - begun.sum())
    if lift.sum() > affordable:
        lift *= affordable / lift.sum()
    shares = _raised(begun + lift, weights, total)
    return _raised(shares, np.ones_like(weights), total)


def _raised(shares: NDArray[np.float64], weights: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    """`min(1, shares + c * weights)` with `c` such that they sum to `total`, or as near as positive weights come."""
    largest = weights.max()
    weights = np.where(weights > NEGLIGIBLE * largest, weights, 0.0) / (largest if largest > 0 else 1.0)
    left = total - shares.sum()
    rising = np.flatnonzero((weights > 0) & (shares < 1))
    if left <= 0 or not rising.size:
        return shares
    whole_at = (1.0 - shares[rising]) / weights[rising]  # the `c` at which each would be whole
    order = np.argsort(whole_at, kind="stable")
    rising, whole_at = rising[order], whole_at[order]
    room, speed = 1.0 - shares[rising], weights[rising]
    spent = np.concatenate([[0.0], np.cumsum(room)[:-1]])  # by those that are whole before each
    level = (left - spent) / np.cumsum(speed[::-1])[::-1]  # `c`, if exactly those were whole
    enough = level <= whole_at
    c = level[enough.argmax()] if enough.any() else whole_at[-1]
    return np.minimum(1.0, shares + c * weights)


def _known_estimator(name: str) -> str:
    if name not in ESTIMATORS:
        raise UserError(f"unknown estimator {name!r}; known: {', '.join(ESTIMATORS)}")
    return name


@dataclass(frozen=True, kw_only=True)
class Baklava(Allocator):
    """More memory for the KV caches of higher importance.

    With importance scaled to [0, 1], head and layer importance mixed, the first `whole` part of the budget makes
    caches whole, one after another in order of importance; the rest raises every cache to the `floor` and then in
    proportion to `importance ** slope`, up to 1. `slope` 0 and `whole` 0 are the uniform allocation; a steep slope
    fills caches in order of importance. No cache gains when the total shrinks.

    With `search` (the default) the parameters are starting values and the search picks them per ratio, among all
    estimators that the profile holds but the control.
    """

    family: ClassVar[str] = "baklava"

    search: bool = True
    estimator: Annotated[str, AfterValidator(_known_estimator)] = "eviction_shift"
    pool: Literal["mean", "max"] = "mean"
    layer_mix: Part = 0.0
    slope: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 2.0
    floor: Part = 0.02
    whole: Part = 0.0

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
        rank = np.argsort(np.argsort(-importance, kind="stable"), kind="stable")
        start = np.clip(self.whole * total - rank, 0.0, 1.0)
        shares = fill(importance**self.slope, total=total, floor=self.floor, start=start)
        return shares.reshape(profile.n_layers, profile.n_kv_heads)

    def candidates(self, profile: Profile, *, n: int, seed: int) -> Sequence[Allocator]:
        """`n` mappings per estimator: the starting values, plain filling in order, then a quasi-random sweep."""
        if not self.search:
            return [self]
        from scipy.stats import qmc

        fixed = [self, replace(self, slope=32.0), replace(self, slope=1.0), replace(self, whole=0.7, slope=1.0)][:n]
        left = n - len(fixed)
        sweep = qmc.Sobol(d=5, seed=seed).random_base2(max(0, left - 1).bit_length())[:left]
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
            if estimator not in CONTROLS
            for candidate in (*fixed, *swept)
        ]


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """To [0, 1], smallest to 0 and largest to 1; all equal: all 1."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.ones_like(values)
