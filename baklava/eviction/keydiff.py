"""KeyDiff: keys that differ from the others matter (arXiv 2504.15364)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from baklava.eviction.base import EvictionPolicy, LayerContext

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class KeyDiff(EvictionPolicy):
    """Scores an entry by how far its key points away from the mean direction of all keys; needs no queries.

    The score is `-cos(k, a)` with the anchor `a`, the mean of the normalised keys. The paper evicts block after block
    while it reads, with an anchor of the remaining entries; here, as in kvpress 0.5.5's `KeyDiffPress` and the entry
    "keydiff" of its leaderboard, the entire context is ranked once ("block_keydiff" there is the paper's way).
    """

    family: ClassVar[str] = "keydiff"

    def score(self, context: LayerContext, state: Any) -> Tensor:
        import torch
        from torch.nn import functional

        keys = context.keys.to(torch.promote_types(context.keys.dtype, torch.float32))
        anchor = functional.normalize(keys, dim=-1).mean(2, keepdim=True)  # [B, Hkv, 1, D]
        return -functional.cosine_similarity(keys, anchor, dim=-1)  # [B, Hkv, S]
