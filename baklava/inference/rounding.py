"""Keys and values as a cache of few bits gives them back."""

from __future__ import annotations

import torch
from torch import Tensor

from baklava.budgets import Packing
from baklava.budgets.bits import EXACT
from baklava.cache.quantised import Quantised


def as_stored(vectors: Tensor, kept: Tensor, width: int, *, by_entry: bool) -> Tensor:
    """Keys or values `[Hkv, T, D]` whose `kept` entries `[Hkv, T]` are as a cache of `width` bits gives them back."""
    if width == EXACT:
        return vectors
    packing, span = Packing(), min(Packing().group, vectors.shape[-1]) if by_entry else 0
    stored = vectors.to(torch.promote_types(vectors.dtype, torch.float32), copy=True)
    for head, own in enumerate(kept):
        n = int(packing.n_groups(own.sum().cpu())) * packing.group
        where = own.nonzero().squeeze(-1)[packing.sinks : packing.sinks + n]
        groups = vectors[head, where].unflatten(0, (-1, packing.group))
        if n:
            stored[head, where] = Quantised.of(groups, width, span).dequantise().flatten(0, 1).to(stored)
    return stored
