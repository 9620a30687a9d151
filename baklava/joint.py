"""The joint refinement: marginal losses measured around an allocation, and budget moved to where it is worth most.

Removing one KV cache at a time hides redundancy: of two that hold the same, each can go, but not both. So losses are
measured again at the allocation at hand, with everything else as compressed as it will be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from baklava.allocate import Baklava, BaklavaMeasured, Fitted, Uniform
from baklava.budgets import Budgets
from baklava.calibration import Calibration, Prompt
from baklava.importance import CONTROLS
from baklava.jobs import AllocateJob
from baklava.models.load import load_model
from baklava.profile import Profile
from baklava.replay import Replay
from baklava.search import searched_budgets

Shares = NDArray[np.float64]  # [N], one per KV cache
# Mean losses over the search prompts, of some allocations per ratio: one prefill per prompt serves all of them.
Losses = Callable[[Mapping[float, Sequence[Shares]]], Mapping[float, NDArray[np.float64]]]

UNIFORM = "uniform"
LEAST = 1e-9  # a smaller part of a share is none
SLOPES = (1.0, 2.0, 32.0)  # of the mappings among the starts

COLUMNS = {
    "model": "string",
    "allocator": "string",
    "eviction": "string",
    "ratio": "float64",
    "candidate": "int64",
    "move": "string",  # a start, or the round and how much it moved, in whole KV caches
    "loss": "float64",
    "n_prompts": "int64",
    "chosen": "bool",
}


@dataclass(frozen=True)
class Trial:
    """An allocation that was tried, how it came about, and its mean loss on the search prompts."""

    move: str
    shares: Shares
    loss: float


@dataclass
class Refinement:
    """One ratio: all allocations tried so far, the `n_starts` starts first, and the step of the next round."""

    trials: list[Trial]
    n_starts: int
    step: float
    floor: float

    @property
    def start(self) -> Trial:
        """The start that loses least."""
        return min(self.trials[: self.n_starts], key=lambda trial: trial.loss)

    @property
    def best(self) -> Trial:
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
            *(at_hand + up[i] * (np.arange(n) == i) for i in np.flatnonzero(up > LEAST)),
            *(at_hand - down[i] * (np.arange(n) == i) for i in np.flatnonzero(down > LEAST)),
        ]

    def proposals(self, losses: NDArray[np.float64], *, label: str) -> dict[str, Shares]:
        """Less and more budget moved, from those that lose least to those that gain most; `losses` of the probes."""
        up, down = self.room()
        n_up = int((up > LEAST).sum())
        rises = losses - self.best.loss
        gains, costs = np.full(len(up), -np.inf), np.full(len(up), np.inf)  # per unit of share
        gains[up > LEAST] = -rises[:n_up] / up[up > LEAST]
        costs[down > LEAST] = rises[n_up:] / down[down > LEAST]
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


def _trials(tried: Mapping[str, Shares], losses: NDArray[np.float64]) -> list[Trial]:
    return [Trial(move, shares, float(loss)) for (move, shares), loss in zip(tried.items(), losses, strict=True)]


def refine(
    starts: Mapping[float, Mapping[str, Shares]], losses: Losses, *, rounds: int, step: float, floor: float
) -> dict[float, Refinement]:
    """Refine the best of each ratio's starts, all ratios side by side.

    A round probes every KV cache, then tries moves of several sizes and goes on from the best if it loses less than
    the allocation at hand, else from the same one with half the step. So no round makes the loss higher.
    """

    def measure(some: Mapping[float, Mapping[str, Shares]]) -> Mapping[float, NDArray[np.float64]]:
        return losses({ratio: list(tried.values()) for ratio, tried in some.items()})

    measured = measure(starts)
    found = {
        ratio: Refinement(_trials(tried, measured[ratio]), len(tried), step, floor) for ratio, tried in starts.items()
    }
    for number in range(1, rounds + 1):
        probed = losses({ratio: one.probes() for ratio, one in found.items()})
        moves = {ratio: one.proposals(probed[ratio], label=f"round {number}") for ratio, one in found.items()}
        measured = measure(moves)
        for ratio, one in found.items():
            one.take(moves[ratio], measured[ratio])
    return found


def starts(
    allocator: BaklavaMeasured, profile: Profile, ratio: float, searched: Budgets | None = None
) -> dict[str, Shares]:
    """Allocations to begin with, by name. Uniform is always among them, so the result is never worse than it."""
    some = {UNIFORM: Uniform(name=UNIFORM).shares(profile, ratio), "knapsack": allocator.shares(profile, ratio)}
    if searched is not None:
        some["searched"] = searched.shares
    if allocator.start == "fillings":
        for estimator in profile.head_importance:
            for slope in SLOPES if estimator not in CONTROLS else ():
                mapping = Baklava(name=estimator, search=False, estimator=estimator, slope=slope, floor=allocator.floor)
                some[f"{estimator} ** {slope:g}"] = mapping.shares(profile, ratio)
    return {name: shares.ravel() for name, shares in some.items()}


class ReplayedLosses:
    """`Losses` measured by replaying the continuations of the search prompts."""

    def __init__(self, replay: Replay, prompts: Sequence[Prompt], shape: tuple[int, int], progress: tqdm):
        self._replay = replay
        self._prompts = prompts
        self._shape = shape
        self._progress = progress

    def __call__(self, rows: Mapping[float, Sequence[Shares]]) -> dict[float, NDArray[np.float64]]:
        budgets = [Budgets.from_shares(one.reshape(self._shape)) for some in rows.values() for one in some]
        losses = []
        for prompt in self._prompts:
            losses.append(self._replay.losses(prompt, budgets))
            self._progress.update()
        parts = np.split(np.mean(losses, axis=0), np.cumsum([len(some) for some in rows.values()])[:-1])
        return dict(zip(rows, parts, strict=True))


def joint_budgets(job: AllocateJob, allocator: BaklavaMeasured, profile: Profile) -> Fitted:
    """Refined budgets for every ratio of the job, and what was tried."""
    prompts = Calibration.load(job.prompts).search
    replay = Replay(load_model(job.model), job.eviction.build(), batch_rows=job.search.batch_rows)
    shape = (profile.n_layers, profile.n_kv_heads)
    n_steps = len(prompts) * (2 + 2 * allocator.rounds)
    searched = searched_budgets(job, Baklava(name="baklava"), profile).budgets if allocator.start == "search" else {}
    with tqdm(total=n_steps, desc=f"refine {job.model.name} {job.allocator.name}", unit="prompt") as progress:
        losses = ReplayedLosses(replay, prompts, shape, progress)
        [loss_full] = losses({0.0: [np.ones(profile.n_layers * profile.n_kv_heads)]})[0.0]
        found = refine(
            {ratio: starts(allocator, profile, ratio, searched.get(ratio)) for ratio in job.budgets},
            losses,
            rounds=allocator.rounds,
            step=allocator.step,
            floor=allocator.floor,
        )
    origin = {
        "calibration": profile.meta.get("calibration"),
        "profiled": profile.meta.get("path"),
        "loss_full": float(loss_full),
        "n_prompts": len(prompts),
    }
    budgets = {
        ratio: Budgets.from_shares(
            one.best.shares.reshape(shape),
            ratio=ratio,
            model=profile.model,
            allocator=allocator.name,
            parameters={key: value for key, value in asdict(allocator).items() if key != "name"},
            provenance={**origin, **_origin(one)},
        )
        for ratio, one in found.items()
    }
    return Fitted(budgets, _trace(job, found, n_prompts=len(prompts)))


def _origin(found: Refinement) -> dict[str, Any]:
    """Where the allocation at hand comes from, and what it and others lose."""
    uniform = next(trial for trial in found.trials if trial.move == UNIFORM)
    return {
        "start": found.start.move,
        "move": found.best.move,
        "loss": found.best.loss,
        "loss_start": found.start.loss,
        "loss_uniform": uniform.loss,
        "n_candidates": len(found.trials),
    }


def _trace(job: AllocateJob, found: Mapping[float, Refinement], *, n_prompts: int) -> pd.DataFrame:
    rows = [
        {
            "model": job.model.name,
            "allocator": job.allocator.name,
            "eviction": job.eviction.name,
            "ratio": ratio,
            "candidate": place,
            "move": trial.move,
            "loss": trial.loss,
            "n_prompts": n_prompts,
            "chosen": trial is one.best,
        }
        for ratio, one in found.items()
        for place, trial in enumerate(one.trials)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
