"""The BaKlaVa allocation: importance to shares through a parametric mapping (arXiv 2502.13176, sections 3-4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from baklava.allocate.base import Allocator, Estimator, Part, Pool, kv_importance
from baklava.allocate.filling import fill
from baklava.importance import CONTROLS

if TYPE_CHECKING:
    from baklava.profile import Profile


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
    estimator: Estimator = "eviction_shift"
    pool: Pool = "mean"
    layer_mix: Part = 0.0
    slope: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 2.0
    floor: Part = 0.02
    whole: Part = 0.0

    def importance(self, profile: Profile) -> NDArray[np.float64]:
        """Head importance pooled over the GQA group and mixed with layer importance, in [0, 1], `[L, Hkv]`."""
        head = _scaled(kv_importance(profile, self.estimator, pool=self.pool, allocator=self.name))
        layer = _scaled(profile.layer_importance.mean(0))
        return (1.0 - self.layer_mix) * head + self.layer_mix * layer[:, None]

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
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
