"""How far evicting a head's entries moves the residual stream, at context-dependent tokens."""

from __future__ import annotations

from torch import Tensor

from baklava.importance.base import HeadView


def importance(view: HeadView) -> Tensor:
    """`mean ||W_o (o - o_evicted)||` per query head, `[Hq]`, in the units of the residual stream.

    Where a norm or a multiplier stands between `W_o` and the stream, its outputs are compared.
    """
    return view.residual_shift(view.full - view.evicted).norm(dim=-1).mean(-1)
