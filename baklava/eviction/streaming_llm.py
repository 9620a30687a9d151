"""StreamingLLM: attention sinks and the most recent entries (arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from baklava.eviction.base import EvictionPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(EvictionPolicy):
    """Keeps the first `n_sink` entries and as many of the last ones as the budget allows.

    A budget below `n_sink` keeps the first entries only.
    """

    family: ClassVar[str] = "streaming_llm"

    n_sink: Annotated[int, Field(ge=0)] = 4

    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        import torch

        batch, n_kv_heads, n_entries, _ = keys.shape
        position = torch.arange(n_entries, device=keys.device)
        position[: self.n_sink] = 2 * n_entries - position[: self.n_sink]
        return position.expand(batch, n_kv_heads, n_entries)
