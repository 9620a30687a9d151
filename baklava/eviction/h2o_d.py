"""H2O while the model writes: heavy hitters are found anew as attention adds up (arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from baklava.eviction.h2o import H2O

if TYPE_CHECKING:
    from torch import Tensor

    from baklava.eviction.held import HeldEntries


@dataclass(frozen=True, kw_only=True)
class H2ODecoding(H2O):
    """`h2o` at the end of the context; after it, entries go on collecting the attention of every query.

    It needs `decoding` "fixed"; with "grow" it is `h2o`. The order in which entries are overwritten follows the sums
    every `every` tokens: 1 is the paper's way, which evicts one entry a step; above it, the attention that the queries
    since the last time pay is computed over what is still held. kvpress 0.5.5 has no H2O.
    """

    family: ClassVar[str] = "h2o_d"

    every: Annotated[int, Field(ge=1)] = 1

    @property
    def rescores_every(self) -> int:
        return self.every

    @property
    def adds_scores(self) -> bool:
        return True

    def n_queries(self, n_new: int) -> int:
        return n_new

    def rescore(self, held: HeldEntries, queries: Tensor, query_positions: Tensor) -> Tensor:
        return held.scores + held.weights(queries, query_positions).sum(2).mean(1)
