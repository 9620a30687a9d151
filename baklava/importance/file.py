"""Scores of heads that another project published, for example KVzip's or HeadKV's."""

from __future__ import annotations

from torch import Tensor

from baklava.errors import UserError
from baklava.importance.base import HeadView


def importance(view: HeadView) -> Tensor:
    """What the file of `profile.scores` says of each query head, `[Hq]`; it looks at nothing else."""
    if view.scores is None:
        raise UserError("estimator file: no scores; set profile.scores to a file")
    return view.scores
