"""How far eviction of a head's entries moves the residual stream, at the positions that must look back."""

from __future__ import annotations

from torch import Tensor

from baklava.importance.base import HeadView


def importance(view: HeadView) -> Tensor:
    """`mean ||W_o (o - o_evicted)||` per query head, `[Hq]`, in the units of the residual stream."""
    shift = (view.look_back - view.evicted) @ view.output_weight.transpose(-1, -2)  # [Hq, N, hidden]
    return shift.norm(dim=-1).mean(-1)
