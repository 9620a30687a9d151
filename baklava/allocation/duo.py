"""DuoAttention: retrieval heads keep everything, streaming heads the sinks and a window (arXiv 2410.10819)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from baklava.allocation.base import Allocator, Estimator, Pool, kv_importance

if TYPE_CHECKING:
    from baklava.importance.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Duo(Allocator):
    """As many KV caches as the total allows are fully kept, in order of their score; the others keep `streaming`.

    In the paper the number of retrieval heads is chosen and the memory follows from it; here the total decides how many
    there are, and the next cache takes what is left. A total that is not enough for `streaming` everywhere is spread
    evenly. The authors' streaming heads keep 64 sinks and 256 recent tokens (kvpress 0.5.5: 128 and 256) whatever the
    context; here they keep a share of it, by default as many tokens as theirs at a context of 3,200. The paper learns
    its score from the outputs of heads that see only sinks and a window, so the default is the estimator that measures
    what this changes.
    """

    family: ClassVar[str] = "duo"

    estimator: Estimator = "eviction_shift"
    pool: Pool = "max"
    streaming: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        score = kv_importance(profile, self.estimator, pool=self.pool, allocator=self.name)
        return greedy_shares(score, ratio, floor=self.streaming)


def greedy_shares(score: NDArray[np.float64], ratio: float, *, floor: float) -> NDArray[np.float64]:
    """Shares `[L, Hkv]` that fully keep KV caches in order of `score` `[L, Hkv]`, and leave the others at `floor`.

    Only the ranking counts; of equal scores the earlier layer and head comes first. A total that is not enough for
    `floor` everywhere is spread evenly.
    """
    mean = 1.0 - ratio
    base = min(floor, mean)
    n_full = score.size * (mean - base) / (1.0 - floor)
    rank = np.argsort(np.argsort(-score.ravel(), kind="stable"), kind="stable")
    return (base + (1.0 - base) * np.clip(n_full - rank, 0.0, 1.0)).reshape(score.shape)
