"""Shares from measured losses: a knapsack over the curves of every KV cache, then a joint refinement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from baklava.allocation.base import Allocator, Fraction
from baklava.allocation.knapsack import falling, knapsack
from baklava.errors import UserError

if TYPE_CHECKING:
    from baklava.importance.profile import Profile


@dataclass(frozen=True, kw_only=True)
class BaklavaMeasured(Allocator):
    """Memory where measured losses fall fastest.

    `shares` is the knapsack over the lower convex hulls of the curves (`baklava curves`), for every ratio at once; no
    cache gains when the total shrinks. It takes losses for a sum of what each KV cache loses alone, which redundant
    ones do not obey: each can be missed, but not all. So `rounds` of a joint refinement follow (0: none; see
    `baklava/search/local_search.py`). They begin at whichever loses least on the search prompts: the knapsack, the
    uniform share
    and, as `start` says, nothing else ("curves"), plain mappings of importance ("fillings"), or what the search of
    `baklava` finds ("search"). Each round measures what every cache gains and loses by `step` more and less *at the
    allocation at hand*, and moves budget where that pays. What comes out never loses more than its start on the search
    prompts; it need not be monotone in the ratio.
    """

    family: ClassVar[str] = "baklava_measured"
    needs_curves: ClassVar[bool] = True

    floor: Fraction = 0.02
    rounds: Annotated[int, Field(ge=0)] = 4
    step: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    start: Literal["curves", "fillings", "search"] = "fillings"

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        curves = profile.curves
        if curves is None:
            raise UserError(f"allocator {self.name}: it needs measured curves; make them with `baklava curves`")
        n = profile.n_layers * profile.n_kv_heads
        rises = falling(curves.mean().reshape(len(curves.levels), n))
        shares = knapsack(
            np.array([*curves.levels, 1.0]),
            np.concatenate([rises, np.zeros((1, n))]),  # whole: the full cache's loss
            total=(1.0 - ratio) * n,
            floor=self.floor,
        )
        return shares.reshape(profile.n_layers, profile.n_kv_heads)
