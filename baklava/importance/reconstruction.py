"""How much a KV cache is looked at while the model repeats its context: KVzip's score of a head (arXiv 2505.23416)."""

from __future__ import annotations

from torch import Tensor

from baklava.errors import UserError
from baklava.importance.base import HeadView


def importance(view: HeadView) -> Tensor:
    """The largest attention that any token of the repetition pays any entry of the head's KV cache, `[Hq]`, in [0, 1].

    It takes a second reading of the context (`baklava.profiling.reconstruction`) and looks at nothing else.
    """
    if view.reconstruction is None:
        raise UserError("estimator reconstruction: the context was not repeated")
    return view.reconstruction
