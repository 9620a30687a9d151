"""How much the attention block of a head's layer turns the residual stream (SqueezeAttention, arXiv 2404.04793)."""

from __future__ import annotations

from torch import Tensor

from baklava.importance.base import HeadView


def importance(view: HeadView) -> Tensor:
    """`1 - mean_t cos(x_t, x_t + attention_t)`, the same for all query heads of the layer, `[Hq]`, in [0, 2].

    This is the profile's layer importance: it does not tell the KV caches of a layer apart.
    """
    return view.layer_importance.expand(view.outputs.shape[0])
