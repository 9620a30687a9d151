"""The base of policies that look at the last queries, and keep the entries of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from baklava.errors import UserError
from baklava.eviction.base import EvictionPolicy, LayerContext

if TYPE_CHECKING:
    from torch import Tensor


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise UserError(f"a pooling kernel has a middle, so its size must be odd, got {size}")
    return size


WindowSize = Annotated[int, Field(ge=1)]
KernelSize = Annotated[int, Field(ge=1), AfterValidator(_odd)]


@dataclass(frozen=True, kw_only=True)
class Windowed(EvictionPolicy):
    """Remembers the last `window_size` queries `[B, Hq, <= window_size, D]`, and protects their entries."""

    window_size: WindowSize

    def protected_last(self, budget: int) -> int:
        return self.window_size

    def observe(self, state: Tensor | None, queries: Tensor, context: LayerContext) -> Tensor:
        from baklava.eviction.observed import last_queries

        return last_queries(state, queries, self.window_size)


def average_neighbours(values: Tensor, size: int) -> Tensor:
    """Average `[B, ..., S]` over `size` neighbours; beyond the edges there is nothing."""
    from torch.nn import functional

    rows = values.reshape(values.shape[0], -1, values.shape[-1])
    return functional.avg_pool1d(rows, size, stride=1, padding=size // 2).view_as(values)
