"""StreamingLLM: attention sinks and the most recent entries (arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from baklava.eviction.base import EvictionPolicy, LayerContext

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(EvictionPolicy):
    """Keeps the first `n_sink` entries and as many of the last ones as the budget allows.

    A budget below `n_sink` keeps the first entries only. Four sinks are the default of the paper and of kvpress 0.5.5.
    The authors' code gives the kept entries new, contiguous positions; here, as in kvpress, they keep their own.
    """

    family: ClassVar[str] = "streaming_llm"

    n_sink: Annotated[int, Field(ge=0)] = 4

    def protected_first(self, budget: int) -> int:
        return self.n_sink

    def score(self, context: LayerContext, state: Any) -> Tensor:
        import torch

        batch, n_kv_heads, n_entries, _ = context.keys.shape
        position = torch.arange(n_entries, device=context.keys.device, dtype=torch.float32)
        return position.expand(batch, n_kv_heads, n_entries)
