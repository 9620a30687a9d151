"""The base of policies that look at the last queries, and keep the entries of these."""

from __future__ import annotations

from collections.abc import Callable
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


@dataclass(frozen=True, kw_only=True)
class WindowedDecoding(Windowed):
    """Scores what is held anew every `every` tokens, by the last `window_size` queries."""

    every: Annotated[int, Field(ge=1)] = 16

    @property
    def rescores_every(self) -> int:
        return self.every

    def n_queries(self, n_new: int) -> int:
        return self.window_size


def score_before_window(context: LayerContext, state: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Scores `[B, Hkv, S]`, 0 in the window and before it what `score` makes of the mean attention from it.

    It takes `[B, Hq, S - window]`, of at least one entry, and returns `[B, Hkv, S - window]`.
    """
    import torch

    from baklava.eviction.observed import received_attention

    window = state.shape[2]
    received = received_attention(state, context)  # [B, Hkv, group, S]
    if window == context.keys.shape[2]:
        return torch.zeros_like(received[:, :, 0])
    return torch.nn.functional.pad(score(received[..., :-window].flatten(1, 2) / window), (0, window))


def average_neighbours(values: Tensor, size: int) -> Tensor:
    """Average `[B, ..., S]` over `size` neighbours; beyond the edges there is nothing."""
    from torch.nn import functional

    rows = values.reshape(values.shape[0], -1, values.shape[-1])
    return functional.avg_pool1d(rows, size, stride=1, padding=size // 2).view_as(values)
