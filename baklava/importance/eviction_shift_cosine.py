"""How far eviction turns a head's output, at context-dependent tokens."""

from __future__ import annotations

from torch import Tensor

from baklava.importance.base import HeadView, cosine_distance


def importance(view: HeadView) -> Tensor:
    """`1 - mean cos(o, o_evicted)` per query head, `[Hq]`, in [0, 2]."""
    return cosine_distance(view.full, view.evicted)
