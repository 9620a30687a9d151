"""TOVA: keeps what the last query attends to (arXiv 2401.06104)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from baklava.eviction.base import EvictionPolicy, LayerContext

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TOVA(EvictionPolicy):
    """Scores an entry by the attention it gets from the last query, averaged over all heads of the layer.

    KV caches of a layer with equal budgets therefore keep the same entries. The last entry is protected, as in kvpress
    0.5.5; the paper lets it compete. The paper evicts one entry at each decoding step; here, as in kvpress, the entire
    context is ranked once, at its end. There are no parameters.
    """

    family: ClassVar[str] = "tova"

    def protected_last(self, budget: int) -> int:
        return 1

    def observe(self, state: Tensor | None, queries: Tensor, context: LayerContext) -> Tensor:
        from baklava.eviction.observed import last_queries

        return last_queries(state, queries, 1)

    def score(self, context: LayerContext, state: Tensor) -> Tensor:
        from baklava.eviction.observed import received_attention

        weights = received_attention(state, context).mean((1, 2), keepdim=True)[:, 0]  # [B, 1, S]
        return weights.expand(-1, context.keys.shape[1], -1)
