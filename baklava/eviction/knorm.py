"""Knorm: short keys matter (arXiv 2406.11430)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from baklava.eviction.base import EvictionPolicy, LayerContext

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Knorm(EvictionPolicy):
    """Scores an entry by the norm of its key, the smallest highest; needs no queries.

    The authors' examples leave the first two layers uncompressed; here, as in kvpress 0.5.5 and its leaderboard, that
    is up to the allocator. There are no parameters.
    """

    family: ClassVar[str] = "knorm"

    def score(self, context: LayerContext, state: Any) -> Tensor:
        import torch

        exact = torch.promote_types(context.keys.dtype, torch.float32)
        return -torch.linalg.vector_norm(context.keys, dim=-1, dtype=exact)  # [B, Hkv, S]
