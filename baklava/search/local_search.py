"""Local search around measured budgets: probe every KV cache, then move budget to where it is worth most.

Removing one KV cache at a time hides redundancy: of two that hold the same, each can go, but not both. So losses are
measured again around the current allocation, with everything else as compressed as it will be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baklava.allocation.fitted import Candidate, Optimum, Shares
from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.inference.continuation_loss import LossSource
from baklava.search.allowance import Allowance
from baklava.system.progress import Progress

# Mean losses of allocations per ratio: one call, so that one prefill per prompt serves all of them.
Losses = Callable[[Mapping[float, Sequence[Shares]]], Mapping[float, NDArray[np.float64]]]

MIN_SHARE = 1e-9  # room below this counts as none


class MeanLosses:
    """`Losses` of allocations: means over prompts. `progress` advances by one for each continuation that is read.

    An allocation has one share per group of `group` neighbouring KV heads.
    """

    def __init__(
        self,
        losses: LossSource,
        prompts: Sequence[Prompt],
        shape: tuple[int, int],
        progress: Progress,
        allowance: Allowance | None = None,
        group: int = 1,
    ):
        self._allowance = allowance or Allowance()
        self._losses = losses
        self._prompts = prompts
        self._shape = shape
        self._progress = progress
        self._group = group

    def __call__(self, allocations: Mapping[float, Sequence[Shares]]) -> dict[float, NDArray[np.float64]]:
        budgets = [
            Budgets.from_shares(np.repeat(shares, self._group).reshape(self._shape))
            for candidates in allocations.values()
            for shares in candidates
        ]
        losses = np.zeros((len(self._prompts), len(budgets)))
        for i, prompt in enumerate(self._prompts):
            if budgets:
                losses[i] = self._losses.losses(prompt, budgets)
            self._progress.update(len(budgets))
        self._allowance.spend(self._prompts, len(budgets), of=len(self._prompts))
        ends = np.cumsum([len(candidates) for candidates in allocations.values()], dtype=int)
        groups = np.split(losses.mean(0), ends)[:-1]  # nothing comes after the last one
        return dict(zip(allocations, groups, strict=True))


@dataclass
class LocalSearch:
    """The search at one ratio: all candidates so far, the `n_starts` starts first, and the step of the next round."""

    candidates: list[Candidate]
    n_starts: int
    step: float
    floor: float

    @property
    def start(self) -> Candidate:
        """The start that loses least."""
        return min(self.candidates[: self.n_starts], key=lambda candidate: candidate.loss)

    @property
    def best(self) -> Candidate:
        """The current allocation: the first of those that lose least."""
        return min(self.candidates, key=lambda candidate: candidate.loss)

    def take(self, moves: Mapping[str, Shares], losses: NDArray[np.float64]) -> None:
        """Accept the best move if it lowers the loss; otherwise halve the step."""
        before = self.best
        self.candidates += _candidates(moves, losses)
        if self.best is before:
            self.step /= 2

    def room(self) -> tuple[Shares, Shares]:
        """By how much each KV cache can gain and give in a step, `[N]` each."""
        shares = self.best.shares
        return np.clip(1.0 - shares, 0.0, self.step), np.clip(shares - self.floor, 0.0, self.step)

    def probes(self) -> list[Shares]:
        """The current allocation with one KV cache a step up, then with one a step down, where there is room."""
        up, down = self.room()
        current, n = self.best.shares, len(up)
        return [
            *(current + up[i] * (np.arange(n) == i) for i in np.flatnonzero(up > MIN_SHARE)),
            *(current - down[i] * (np.arange(n) == i) for i in np.flatnonzero(down > MIN_SHARE)),
        ]

    def proposals(self, losses: NDArray[np.float64], *, label: str) -> dict[str, Shares]:
        """Moves of several sizes, from the caches that lose least to those that gain most; `losses` of the probes."""
        up, down = self.room()
        n_up = int((up > MIN_SHARE).sum())
        best = self.best.loss
        rises = np.subtract(losses, best, out=np.zeros_like(losses), where=losses != best)  # inf - inf: no rise
        gains, costs = np.full(len(up), -np.inf), np.full(len(up), np.inf)  # per unit of share
        gains[up > MIN_SHARE] = -rises[:n_up] / up[up > MIN_SHARE]
        costs[down > MIN_SHARE] = rises[n_up:] / down[down > MIN_SHARE]
        sizes = self.step * 2.0 ** np.arange(-1, np.log2(len(up)))
        return {
            f"{label}, {size:.4g}": np.clip(
                self.best.shares + _spread(size, up, by=-gains) - _spread(size, down, by=costs), 0.0, 1.0
            )
            for size in sizes
            if size <= min(up.sum(), down.sum())
        }

    def optimum(self, *, loss_full: float, n_prompts: int) -> Optimum:
        """The result, with the full cache's loss and the number of prompts that all losses are means over."""
        return Optimum(tuple(self.candidates), self.start, self.best, loss_full, n_prompts)


def _spread(size: float, room: Shares, *, by: NDArray[np.float64]) -> Shares:
    """`size` given to KV caches in order of `by`, smallest first, each as much as it has room for."""
    order = np.argsort(by, kind="stable")
    amounts = np.zeros_like(room)
    amounts[order] = np.clip(size - (np.cumsum(room[order]) - room[order]), 0.0, room[order])
    return amounts


def _candidates(moves: Mapping[str, Shares], losses: NDArray[np.float64]) -> list[Candidate]:
    return [Candidate(move, shares, float(loss)) for (move, shares), loss in zip(moves.items(), losses, strict=True)]


def search_locally(
    starts: Mapping[float, Mapping[str, Shares]],
    losses: Losses,
    *,
    rounds: int,
    step: float,
    floor: float,
    allowance: Allowance | None = None,
) -> dict[float, LocalSearch]:
    """Search around the best of each ratio's starts, all ratios side by side.

    A round probes every KV cache, then tries moves of several sizes and continues from the best if it loses less than
    the current allocation, else from the same one with half the step. So no round raises the loss.
    """

    def measure(allocations: Mapping[float, Mapping[str, Shares]]) -> Mapping[float, NDArray[np.float64]]:
        return losses({ratio: list(named.values()) for ratio, named in allocations.items()})

    measured = measure(starts)
    searches = {
        ratio: LocalSearch(_candidates(named, measured[ratio]), len(named), step, floor)
        for ratio, named in starts.items()
    }
    for number in range(1, rounds + 1):
        if allowance is not None and not allowance.is_left():
            break
        probed = losses({ratio: search.probes() for ratio, search in searches.items()})
        moves = {ratio: search.proposals(probed[ratio], label=f"round {number}") for ratio, search in searches.items()}
        measured = measure(moves)
        for ratio, search in searches.items():
            search.take(moves[ratio], measured[ratio])
    return searches
