"""The BaKlaVa allocation: shares by measured influence, or by a mapping of importance (arXiv 2502.13176)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from baklava.allocation.base import (
    Allocator,
    Estimator,
    FitContext,
    Fraction,
    Pool,
    SearchedAllocator,
    SearchPoint,
    Width,
    kv_importance,
)
from baklava.allocation.fitted import Fitted, Grown
from baklava.allocation.uniform import Uniform
from baklava.allocation.water_filling import water_fill
from baklava.budgets import Budgets
from baklava.budgets.bits import EXACT
from baklava.errors import UserError
from baklava.importance import CONTROLS

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from baklava.importance.profile import Profile

# Upper ends of the search space, unless the configured values lie beyond. `steepness` is log2(1 + slope), which has the
# uniform allocation at 0 and as much room between slopes 1 and 3 as between 15 and 31.
MAX_VALUES = {"layer_mix": 0.5, "steepness": 5.0, "floor": 0.08, "whole": 0.95}


def _method(search: Any) -> Any:
    """True and false were the choices before there was growth."""
    return {True: "growth", False: "none"}.get(search, search) if isinstance(search, bool) else search


@dataclass(frozen=True, kw_only=True)
class Baklava(SearchedAllocator):
    """More memory for the KV caches of higher importance.

    With `search` "growth" (the default) shares grow from next to nothing, at each step where measured influence
    says that memory is worth most (`baklava/search/growth.py`), so the budgets of all ratios are nested. Up to
    `refine` rounds grow the lowest part of the path anew.

    Growth stores all KV caches in `bits`, or in the one of the `widths` that loses least at a ratio's bytes: shares
    grow as if nothing were quantised, and only then are the widths compared, on all prompts. With `per_cache` the keys
    and the values of each KV cache get bits of their own (`baklava/search/widths.py`), where that loses less on the
    prompts that growth looked at and not more on those held back. Budgets of several widths are not nested.

    The others are mappings of importance to shares, our reading of the paper. Importance is scaled to [0, 1], head
    and layer importance mixed. The fraction `whole` of the budget keeps caches fully, one after another in order of
    importance; the remainder raises every cache to the `floor` and then in proportion to `importance ** slope`, up
    to 1. `slope` 0 and `whole` 0 are the uniform allocation; a steep slope fills caches in order of importance. No
    cache gains when the total shrinks. With "mapping", a search picks the parameters per ratio, among all
    estimators in the profile except the control; with "none" they are used as they are. The starting values are our
    own.
    """

    family: ClassVar[str] = "baklava"

    search: Annotated[Literal["growth", "mapping", "none"], BeforeValidator(_method)] = "growth"
    estimator: Estimator = "eviction_shift"
    pool: Pool = "mean"
    layer_mix: Fraction = 0.0
    slope: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 2.0
    floor: Fraction = 0.02
    whole: Fraction = 0.0
    refine: Annotated[int, Field(ge=0)] = 2
    widths: tuple[Width, ...] = ()
    per_cache: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.widths and (self.search != "growth" or self.bits != EXACT):
            raise UserError(f"allocator {self.name}: widths are for search: growth, which chooses bits among them")
        if self.widths and (self.granularity, self.page) != ("head", 1):
            raise UserError(f"allocator {self.name}: widths go with granularity: head and page: 1 alone")
        if self.per_cache and len(self.widths) < 2:
            raise UserError(f"allocator {self.name}: per_cache: bits per KV cache are chosen among two widths or more")

    def importance(self, profile: Profile) -> NDArray[np.float64]:
        """Head importance, pooled over the GQA group and mixed with layer importance, in [0, 1], `[L, Hkv]`."""
        head = _scaled(kv_importance(profile, self.estimator, pool=self.pool, allocator=self.name))
        layer = _scaled(profile.layer_importance.mean(0))
        return (1.0 - self.layer_mix) * head + self.layer_mix * layer[:, None]

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        importance = self.importance(profile).ravel()
        total = (1.0 - ratio) * importance.size
        rank = np.argsort(np.argsort(-importance, kind="stable"), kind="stable")
        start = np.clip(self.whole * total - rank, 0.0, 1.0)
        shares = water_fill(importance**self.slope, total=total, floor=self.floor, start=start)
        return shares.reshape(profile.n_layers, profile.n_kv_heads)

    @property
    def quantises(self) -> str | None:
        return "widths" if any(width != EXACT for width in self.widths) else super().quantises

    @property
    def searches(self) -> bool:
        return self.search != "none"

    @property
    def searches_mappings(self) -> bool:
        return self.search == "mapping"

    def fit(self, context: FitContext) -> Fitted:
        if self.search == "mapping":
            self.check_exact()
            return context.search(self)
        if self.search == "none":
            return super().fit(context)
        widths = self.widths or (self.bits,)
        group = self.group(context.profile.n_kv_heads)
        grown = context.grow(refine=self.refine, group=group, widths=widths, per_cache=self.per_cache)
        return Fitted(
            {ratio: self._budgets(context.profile, ratio, path) for ratio, path in grown.items()},
            [trial for ratio, path in grown.items() for trial in path.trials(ratio)],
        )

    def _budgets(self, profile: Profile, ratio: float, grown: Grown) -> Budgets:
        measured = {
            key: value
            for key, value in vars(grown).items()
            if key not in ("shares", "bits", "others") and not np.isnan(value)
        }
        origin = {"calibration": profile.meta.get("calibration"), "profiled": profile.meta.get("path")}
        return Budgets.from_shares(
            grown.shares.reshape(profile.n_layers, profile.n_kv_heads),
            ratio=ratio,
            model=profile.model,
            allocator=self.name,
            parameters={"search": self.search, "refine": self.refine, **self._quantised()},
            provenance={**origin, **measured},
            group=self.group(profile.n_kv_heads),
            page=self.page,
            bits=grown.bits,
        )

    def _quantised(self) -> dict[str, Any]:
        """What is asked for about bits, as parameters of the budgets."""
        asked = {"bits": self.bits, "widths": self.widths, "per_cache": self.per_cache}
        return {key: value for key, value in asked.items() if value not in (EXACT, (), False)}

    def space(self, profile: Profile) -> dict[str, BaseDistribution]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        own = self._point(profile)
        return {
            "estimator": CategoricalDistribution(self._estimators(profile)),
            "pool": CategoricalDistribution(["mean", "max"]),
            **{name: FloatDistribution(0.0, max(high, own[name])) for name, high in MAX_VALUES.items()},
        }

    def starts(self, profile: Profile) -> Sequence[SearchPoint]:
        """Uniform, the configured values with every estimator, and two that fill caches in order of importance."""
        own = self._point(profile)
        uniform = {**own, "layer_mix": 0.0, "steepness": 0.0, "whole": 0.0}
        others = [{**own, "estimator": name} for name in self._estimators(profile) if name != own["estimator"]]
        in_order = [{**own, "steepness": MAX_VALUES["steepness"]}, {**own, "steepness": 1.0, "whole": 0.7}]
        return [uniform, own, *others, *in_order]

    def at(self, point: SearchPoint) -> Allocator:
        if not point["steepness"] and not point["whole"]:
            return Uniform(name="uniform", granularity=self.granularity, page=self.page)
        slope = round(2.0 ** point["steepness"] - 1.0, 9)
        others = {name: value for name, value in point.items() if name != "steepness"}
        return replace(self, slope=slope, **others)

    def _point(self, profile: Profile) -> SearchPoint:
        """The configured values; where the profile lacks their estimator, with the first that it holds."""
        known = self._estimators(profile)
        return {
            "estimator": self.estimator if self.estimator in known else known[0],
            "pool": self.pool,
            "layer_mix": self.layer_mix,
            "steepness": math.log2(1.0 + self.slope),
            "floor": self.floor,
            "whole": self.whole,
        }

    def _estimators(self, profile: Profile) -> list[str]:
        known = [name for name in profile.head_importance if name not in CONTROLS]
        if not known:
            raise UserError(
                f"allocator {self.name}: the profile holds no estimator to search among, only "
                f"{', '.join(profile.head_importance)}; add one to profile.estimators"
            )
        return known


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values scaled so that the smallest is 0 and the largest 1; equal values are all 1."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.ones_like(values)
