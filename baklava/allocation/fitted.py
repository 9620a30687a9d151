"""What fitting an allocator gives: budgets per ratio, and every trial that led to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baklava.budgets import Budgets
from baklava.budgets.bits import EXACT

Shares = NDArray[np.float64]  # [N], one per KV cache, or per group of them that share a budget

GROWN = "grown"  # the move of a trial whose shares grew along their influence
CAPPED = ", capped"  # after the move of what a search chose that `search.max_prefills` stopped
MAPPING = "mapping"  # the move of a trial whose shares come from a mapping of importance


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Shares that a search tried at one ratio, and what they lose on the calibration prompts (nats per answer token).

    `move` says how the shares came about: by a mapping with these `parameters`, as a start of the local search, or in a
    round of it by moving so many fully kept KV caches; a move away from a mapping has that mapping's parameters.
    """

    ratio: float
    number: int  # 0 is the uniform allocation
    move: str
    loss: float  # mean over the prompts that it saw
    n_prompts: int
    early_loss: float  # mean over the prompts that every mapping saw; NaN in the local search
    complete: bool  # saw every prompt
    chosen: bool
    loss_full: float  # of the full cache, over all prompts
    held_back: float = np.nan  # mean over prompts that the search did not look at; NaN where it looked at all
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Candidate:
    """An allocation that the local search tried, how it came about, and its mean loss on the calibration prompts."""

    move: str
    shares: Shares
    loss: float


@dataclass(frozen=True, eq=False)
class Optimum:
    """What the local search tried at one ratio, from which start, and the candidate that loses least."""

    candidates: Sequence[Candidate]
    start: Candidate
    best: Candidate
    loss_full: float
    n_prompts: int

    def trials(self, ratio: float, *, since: int = 0, first: int = 0, **parameters: Any) -> list[Trial]:
        """The candidates from `since` on as trials, numbered from `first`."""
        return [
            Trial(
                ratio=ratio,
                number=number,
                move=candidate.move,
                loss=candidate.loss,
                n_prompts=self.n_prompts,
                early_loss=np.nan,
                complete=True,
                chosen=candidate is self.best,
                loss_full=self.loss_full,
                parameters=parameters,
            )
            for number, candidate in enumerate(self.candidates[since:], first)
        ]


@dataclass(frozen=True, eq=False)
class Grown:
    """Shares that grew to one ratio, and the losses of them, of uniform ones and of the full cache.

    Losses are means over the prompts that growth looked at; `held_back` are means over the others, NaN without any.
    The uniform ones are in the model's precision, those that grew in `bits`. `others` are what else was tried: how it
    came about, and its losses.
    """

    shares: Shares
    loss_full: float
    loss_uniform: float
    loss: float
    held_back_uniform: float
    held_back: float
    n_prompts: int
    bits: Any = EXACT
    others: Sequence[tuple[str, float, float]] = ()

    def trials(self, ratio: float) -> list[Trial]:
        """The uniform allocation, the one that grew, and what else was tried."""
        outcomes = (
            ("uniform", self.loss_uniform, self.held_back_uniform),
            (GROWN, self.loss, self.held_back),
            *self.others,
        )
        return [
            Trial(
                ratio=ratio,
                number=number,
                move=move,
                loss=loss,
                n_prompts=self.n_prompts,
                early_loss=np.nan,
                complete=True,
                chosen=move == GROWN,
                loss_full=self.loss_full,
                held_back=held_back,
            )
            for number, (move, loss, held_back) in enumerate(outcomes)
        ]


@dataclass(frozen=True)
class Fitted:
    """Budgets per ratio, and the trials that led to them; none where shares follow from the profile alone."""

    budgets: dict[float, Budgets]
    trials: Sequence[Trial] = ()
