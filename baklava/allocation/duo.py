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
    """As many KV caches as the total allows are whole, in order of their score; the others keep a share `streaming`.

    In the paper the number of retrieval heads is chosen and the memory follows from it; here the total says how many
    there are, and the first cache that it does not make whole takes what is left. A total that is not enough for
    `streaming` everywhere is spread evenly. The authors' runs have streaming heads of 64 sinks and 256 recent tokens
    (kvpress 0.5.5: 128 and 256) whatever the context; a share keeps a part of it, by default as many as theirs at 3,200
    tokens. Its score is learnt from the outputs of heads that see only sinks and a
    window, so the default is the estimator that measures what this changes.
    """

    family: ClassVar[str] = "duo"

    estimator: Estimator = "eviction_shift"
    pool: Pool = "max"
    streaming: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        score = kv_importance(profile, self.estimator, pool=self.pool, allocator=self.name).ravel()
        mean = 1.0 - ratio
        least = min(self.streaming, mean)
        n_whole = score.size * (mean - least) / (1.0 - self.streaming)
        rank = np.argsort(np.argsort(-score, kind="stable"), kind="stable")
        shares = least + (1.0 - least) * np.clip(n_whole - rank, 0.0, 1.0)
        return shares.reshape(profile.n_layers, profile.n_kv_heads)
