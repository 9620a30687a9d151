"""Shares from measured losses: a knapsack over the curves of every KV cache, then a local search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from baklava.allocation.baklava import Baklava
from baklava.allocation.base import Allocator, FitContext, Fraction, mean_of_groups
from baklava.allocation.fitted import Fitted, Optimum, Shares
from baklava.allocation.knapsack import fit_falling, knapsack
from baklava.allocation.uniform import Uniform
from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.importance import CONTROLS

if TYPE_CHECKING:
    from baklava.importance.profile import Profile

UNIFORM = "uniform"
SLOPES = (1.0, 2.0, 32.0)  # of the mappings among the starts


@dataclass(frozen=True, kw_only=True)
class BaklavaMeasured(Allocator):
    """Memory where measured losses fall fastest.

    `shares` is the knapsack over the lower convex hulls of the curves (`baklava curves`), for every ratio at once; no
    cache gains when the total shrinks. The knapsack assumes that the loss is the sum of what each KV cache loses alone,
    which does not hold for redundant caches: each can be missed, but not all. So `rounds` of local search follow (0:
    none; see `baklava/search/local_search.py`). They begin at whichever loses least on the search prompts: the
    knapsack, the uniform share and, depending on `start`, nothing else ("curves"), plain mappings of importance
    ("fillings"), or what the search of `baklava` finds ("search"). Each round measures what every cache gains and loses
    by `step` more and less *at the current allocation*, and moves budget where that pays. The result never loses more
    than its start on the search prompts; it need not be monotone in the ratio.
    """

    family: ClassVar[str] = "baklava_measured"
    needs_curves: ClassVar[bool] = True

    floor: Fraction = 0.02
    rounds: Annotated[int, Field(ge=0)] = 4
    step: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    start: Literal["curves", "fillings", "search"] = "fillings"

    @property
    def searches(self) -> bool:
        return self.rounds > 0

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        curves = profile.curves
        if curves is None:
            raise UserError(f"allocator {self.name}: it needs measured curves; make them with `baklava curves`")
        n = profile.n_layers * profile.n_kv_heads
        rises = fit_falling(curves.mean().reshape(len(curves.levels), n))
        shares = knapsack(
            np.array([*curves.levels, 1.0]),
            np.concatenate([rises, np.zeros((1, n))]),  # fully kept: the full cache's loss
            total=(1.0 - ratio) * n,
            floor=self.floor,
        )
        return shares.reshape(profile.n_layers, profile.n_kv_heads)

    def fit(self, context: FitContext) -> Fitted:
        if not self.rounds:
            return super().fit(context)
        self.check_exact()
        searched = self._search().fit(context).budgets if self.start == "search" else {}
        starts = {ratio: self._starts(context.profile, ratio, searched.get(ratio)) for ratio in context.ratios}
        group = self.group(context.profile.n_kv_heads)
        optima = context.local_search(starts, rounds=self.rounds, step=self.step, floor=self.floor, group=group)
        return Fitted(
            {ratio: self._budgets(context.profile, ratio, optimum) for ratio, optimum in optima.items()},
            [trial for ratio, optimum in optima.items() for trial in optimum.trials(ratio)],
        )

    def _search(self) -> Baklava:
        return Baklava(name="baklava", granularity=self.granularity, page=self.page)

    def _starts(self, profile: Profile, ratio: float, searched: Budgets | None) -> Mapping[str, Shares]:
        """Allocations to begin with, by name. Uniform is always among them, so the result is never worse than it."""
        starts = {UNIFORM: Uniform(name=UNIFORM).shares(profile, ratio), "knapsack": self.shares(profile, ratio)}
        if searched is not None:
            starts["searched"] = searched.shares
        if self.start == "fillings":
            for estimator in profile.head_importance:
                for slope in SLOPES if estimator not in CONTROLS else ():
                    mapping = Baklava(name=estimator, search="none", estimator=estimator, slope=slope, floor=self.floor)
                    starts[f"{estimator} ** {slope:g}"] = mapping.shares(profile, ratio)
        group = self.group(profile.n_kv_heads)
        return {name: mean_of_groups(shares, group) for name, shares in starts.items()}

    def _budgets(self, profile: Profile, ratio: float, optimum: Optimum) -> Budgets:
        group = self.group(profile.n_kv_heads)
        uniform = next(candidate for candidate in optimum.candidates if candidate.move == UNIFORM)
        provenance: dict[str, Any] = {
            "calibration": profile.meta.get("calibration"),
            "profiled": profile.meta.get("path"),
            "loss_full": optimum.loss_full,
            "n_prompts": optimum.n_prompts,
            "start": optimum.start.move,
            "move": optimum.best.move,
            "loss": optimum.best.loss,
            "loss_start": optimum.start.loss,
            "loss_uniform": uniform.loss,
            "n_candidates": len(optimum.candidates),
        }
        return Budgets.from_shares(
            np.repeat(optimum.best.shares, group).reshape(profile.n_layers, profile.n_kv_heads),
            ratio=ratio,
            model=profile.model,
            allocator=self.name,
            parameters=self.parameters(),
            provenance=provenance,
            group=group,
            page=self.page,
        )
