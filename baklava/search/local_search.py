"""The joint refinement: marginal losses measured around an allocation, and budget moved to where it is worth most.

Removing one KV cache at a time hides redundancy: of two that hold the same, each can go, but not both. So losses are
measured again at the allocation at hand, with everything else as compressed as it will be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Shares = NDArray[np.float64]  # [N], one per KV cache
# Mean losses of some allocations per ratio: one call, so that one prefill per prompt serves all of them.
Losses = Callable[[Mapping[float, Sequence[Shares]]], Mapping[float, NDArray[np.float64]]]

MIN_SHARE = 1e-9  # a smaller part of a share is none


@dataclass(frozen=True)
class Candidate:
    """An allocation that was tried, how it came about, and its mean loss on the search prompts."""

    move: str
    shares: Shares
    loss: float


@dataclass
class LocalSearch:
    """One ratio: all allocations tried so far, the `n_starts` starts first, and the step of the next round."""

    trials: list[Candidate]
    n_starts: int
    step: float
    floor: float

    @property
    def start(self) -> Candidate:
        """The start that loses least."""
        return min(self.trials[: self.n_starts], key=lambda trial: trial.loss)

    @property
    def best(self) -> Candidate:
        """The allocation at hand: the first of those that lose least."""
        return min(self.trials, key=lambda trial: trial.loss)

    def take(self, moves: Mapping[str, Shares], losses: NDArray[np.float64]) -> None:
        """Go on from the best of these if it loses less than the allocation at hand; else look closer."""
        before = self.best
        self.trials += _trials(moves, losses)
        if self.best is before:
            self.step /= 2

    def room(self) -> tuple[Shares, Shares]:
        """By how much each KV cache can gain and give in a step, `[N]` each."""
        shares = self.best.shares
        return np.clip(1.0 - shares, 0.0, self.step), np.clip(shares - self.floor, 0.0, self.step)

    def probes(self) -> list[Shares]:
        """The allocation at hand with one KV cache a step up, then with one a step down, where there is room."""
        up, down = self.room()
        at_hand, n = self.best.shares, len(up)
        return [
            *(at_hand + up[i] * (np.arange(n) == i) for i in np.flatnonzero(up > MIN_SHARE)),
            *(at_hand - down[i] * (np.arange(n) == i) for i in np.flatnonzero(down > MIN_SHARE)),
        ]

    def proposals(self, losses: NDArray[np.float64], *, label: str) -> dict[str, Shares]:
        """Less and more budget moved, from those that lose least to those that gain most; `losses` of the probes."""
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


def _spread(size: float, room: Shares, *, by: NDArray[np.float64]) -> Shares:
    """`size` given to KV caches in order of `by`, smallest first, each as much as it has room for."""
    order = np.argsort(by, kind="stable")
    amounts = np.zeros_like(room)
    amounts[order] = np.clip(size - (np.cumsum(room[order]) - room[order]), 0.0, room[order])
    return amounts


def _trials(tried: Mapping[str, Shares], losses: NDArray[np.float64]) -> list[Candidate]:
    return [Candidate(move, shares, float(loss)) for (move, shares), loss in zip(tried.items(), losses, strict=True)]


def refine(
    starts: Mapping[float, Mapping[str, Shares]], losses: Losses, *, rounds: int, step: float, floor: float
) -> dict[float, LocalSearch]:
    """Refine the best of each ratio's starts, all ratios side by side.

    A round probes every KV cache, then tries moves of several sizes and goes on from the best if it loses less than
    the allocation at hand, else from the same one with half the step. So no round makes the loss higher.
    """

    def measure(some: Mapping[float, Mapping[str, Shares]]) -> Mapping[float, NDArray[np.float64]]:
        return losses({ratio: list(tried.values()) for ratio, tried in some.items()})

    measured = measure(starts)
    found = {
        ratio: LocalSearch(_trials(tried, measured[ratio]), len(tried), step, floor) for ratio, tried in starts.items()
    }
    for number in range(1, rounds + 1):
        probed = losses({ratio: one.probes() for ratio, one in found.items()})
        moves = {ratio: one.proposals(probed[ratio], label=f"round {number}") for ratio, one in found.items()}
        measured = measure(moves)
        for ratio, one in found.items():
            one.take(moves[ratio], measured[ratio])
    return found
