"""HeadKV: equal base budgets, and a pool shared out by importance (arXiv 2410.19258, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from baklava.allocation.base import Allocator, Estimator, Pool, kv_importance
from baklava.allocation.water_filling import water_fill

if TYPE_CHECKING:
    from baklava.importance.profile import Profile


@dataclass(frozen=True, kw_only=True)
class HeadKV(Allocator):
    """Every KV cache gives `1 / beta` of the mean share to a pool, which is shared out in proportion to importance.

    A cache that would get more than 1 is fully kept, and the remainder goes to the others in the same proportion. The
    paper's score is the attention on the needle and on the reasoning that leads to it; here the attention on entries
    far back stands in for it, pooled over a KV cache's query heads by a mean, as in the authors' code for models with
    GQA. The authors try `beta` from 1.005 to 10 for each model; 1.2 is the middle of their list.
    """

    family: ClassVar[str] = "headkv"

    estimator: Estimator = "long_range_mass"
    pool: Pool = "mean"
    beta: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 1.2

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        importance = kv_importance(profile, self.estimator, pool=self.pool, allocator=self.name).ravel()
        mean = 1.0 - ratio
        base = mean * (1.0 - 1.0 / self.beta)
        shares = water_fill(np.maximum(importance, 0.0), total=mean * importance.size, floor=base)
        return shares.reshape(profile.n_layers, profile.n_kv_heads)
