"""How much of a head's attention falls on entries far back, at context-dependent tokens."""

from __future__ import annotations

from torch import Tensor

from baklava.importance.base import HeadView


def importance(view: HeadView) -> Tensor:
    """Mean attention outside the sinks and the recent window per query head, `[Hq]`, in [0, 1].

    It says where a head looks, not whether the values there matter: a head that looks everywhere scores high.
    """
    return view.far_mass.mean(-1)
