"""H2O: heavy hitters, the entries that attract the most attention overall, and recent ones (arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from baklava.eviction.base import EvictionPolicy, LayerContext

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class H2O(EvictionPolicy):
    """Scores an entry by the attention it got from all queries, summed; the last entries get a fraction `recent`.

    Half of the budget for recent entries is the authors' default (`heavy_ratio` 0.1, `recent_ratio` 0.1). The sum is
    averaged over the GQA group. The paper evicts entry by entry while it reads, so that an evicted entry gets no more
    attention; here the entire context is read and ranked once. kvpress 0.5.5 has no H2O: its `ObservedAttentionPress`
    divides each sum by the number of queries that could see the entry, and reserves nothing for recent entries.
    """

    family: ClassVar[str] = "h2o"

    recent: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5

    def protected_last(self, budget: int) -> int:
        return int(self.recent * budget)

    def observe(self, state: Tensor | None, queries: Tensor, context: LayerContext) -> Tensor:
        from baklava.eviction.observed import received_attention

        received = received_attention(queries, context).mean(2)  # [B, Hkv, S]
        if state is not None:
            received[..., : state.shape[-1]] += state
        return received

    def score(self, context: LayerContext, state: Tensor) -> Tensor:
        return state
