"""The paper's estimator (arXiv 2502.13176, section 3): how much attention changes a head's own value vector."""

from __future__ import annotations

from torch import Tensor

from baklava.importance.base import HeadView, cosine_distance


def importance(view: HeadView) -> Tensor:
    """`1 - mean_t cos(v_t, o_t)` per query head, `[Hq]`, in [0, 2]."""
    grouped = view.outputs.unflatten(0, (view.values.shape[0], -1))  # [Hkv, group, T, D]
    return cosine_distance(view.values[:, None], grouped).flatten()
