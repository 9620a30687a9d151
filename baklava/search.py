"""The parameter search: which mapping from importance to shares loses least on calibration continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from baklava.allocate import Allocator, Fitted, Uniform, budgets_of
from baklava.budgets import Budgets
from baklava.calibration import Calibration, Prompt
from baklava.config import SearchConfig
from baklava.jobs import AllocateJob
from baklava.models.load import load_model
from baklava.profile import Profile
from baklava.replay import Replay

# Successive halving: each round adds prompts and keeps the best part of the candidates.
ROUNDS = ((0.25, 1.0), (0.5, 0.25), (1.0, 0.08))  # (prompts seen by the end of the round, candidates in it)
TRACED = ("estimator", "pool", "layer_mix", "slope", "floor", "whole")


@dataclass(frozen=True)
class Candidate:
    """A mapping, and the budgets it gives at one ratio."""

    allocator: Allocator
    budgets: Budgets


@dataclass
class Trial:
    """A candidate and its loss on each prompt that it has seen so far."""

    candidate: Candidate
    losses: list[float]

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))


def _candidates(allocator: Allocator, profile: Profile, ratio: float, settings: SearchConfig) -> list[Candidate]:
    """Uniform first, then the allocator's own; mappings that give the same shares count once."""
    tried: dict[bytes, Candidate] = {}
    own = allocator.candidates(profile, n=settings.n_candidates, seed=settings.seed)
    for one in (Uniform(name="uniform"), *own):
        shares = np.round(one.shares(profile, ratio), 9)
        if shares.tobytes() not in tried:
            tried[shares.tobytes()] = Candidate(one, budgets_of(one, profile, ratio))
    return list(tried.values())


def search(
    candidates: dict[float, list[Candidate]],
    replay: Replay,
    prompts: Sequence[Prompt],
    *,
    full: Budgets,
    progress: tqdm,
) -> tuple[dict[float, list[Trial]], float]:
    """Trials per ratio, best first, and the mean loss of the full cache.

    Every prompt is prefilled once for all ratios. Candidates drop out by successive halving; uniform (the first of
    each ratio) stays to the end, and the winner is the lowest loss among those that saw every prompt, so it is never
    worse than uniform on the calibration prompts.
    """
    trials = {ratio: [Trial(one, []) for one in some] for ratio, some in candidates.items()}
    alive = {ratio: list(some) for ratio, some in trials.items()}
    full_losses = []
    seen = 0
    for until, part in ROUNDS:
        stop = max(seen, round(until * len(prompts)))
        for ratio, some in trials.items():
            if seen:
                best = sorted(alive[ratio], key=lambda trial: trial.loss)[: max(1, round(part * len(some)))]
                alive[ratio] = best if some[0] in best else [some[0], *best]
        for prompt in prompts[seen:stop]:
            rows = [(trial, trial.candidate.budgets) for some in alive.values() for trial in some]
            losses = replay.losses(prompt, [full, *(budgets for _, budgets in rows)])
            full_losses.append(losses[0])
            for (trial, _), loss in zip(rows, losses[1:], strict=True):
                trial.losses.append(float(loss))
            progress.update()
        seen = stop
    for some in trials.values():
        some.sort(key=lambda trial: (-len(trial.losses), trial.loss))
    return trials, float(np.mean(full_losses))


def searched_budgets(job: AllocateJob, allocator: Allocator, profile: Profile) -> Fitted:
    """The best mapping for every ratio of the job, and what was tried."""
    candidates = {ratio: _candidates(allocator, profile, ratio, job.search) for ratio in job.budgets}
    trials, loss_full = _run_search(job, profile, candidates)
    winners = {ratio: _winner(job, trials[ratio], candidates[ratio][0], loss_full) for ratio in job.budgets}
    return Fitted(winners, _trace(job, trials))


def _run_search(
    job: AllocateJob, profile: Profile, candidates: dict[float, list[Candidate]]
) -> tuple[dict[float, list[Trial]], float]:
    prompts = Calibration.load(job.prompts).search
    loaded = load_model(job.model)
    replay = Replay(loaded, job.eviction.build(), batch_rows=job.search.batch_rows)
    full = Budgets.uniform(n_layers=profile.n_layers, n_kv_heads=profile.n_kv_heads, ratio=0.0)
    with tqdm(total=len(prompts), desc=f"search {job.model.name} {job.allocator.name}", unit="prompt") as progress:
        return search(candidates, replay, prompts, full=full, progress=progress)


def _winner(job: AllocateJob, trials: list[Trial], uniform: Candidate, loss_full: float) -> Budgets:
    winner = trials[0]
    loss_uniform = next(trial.loss for trial in trials if trial.candidate is uniform)
    found = winner.candidate.budgets
    losses = {"loss": winner.loss, "loss_uniform": loss_uniform, "loss_full": loss_full}
    return Budgets.from_shares(
        found.shares,
        ratio=found.ratio,
        model=found.model,
        allocator=job.allocator.name,
        parameters={"mapping": winner.candidate.allocator.name, **found.parameters},
        provenance={**found.provenance, **losses, "n_prompts": len(winner.losses), "n_candidates": len(trials)},
    )


def _trace(job: AllocateJob, trials: dict[float, list[Trial]]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for ratio, some in trials.items():
        for place, trial in enumerate(some):
            parameters = asdict(trial.candidate.allocator)
            rows.append(
                {
                    "model": job.model.name,
                    "allocator": trial.candidate.allocator.name,
                    "eviction": job.eviction.name,
                    "ratio": ratio,
                    "candidate": place,
                    **{key: parameters.get(key) for key in TRACED},
                    "loss": trial.loss,
                    "n_prompts": len(trial.losses),
                    "chosen": place == 0,
                }
            )
    columns = ["model", "allocator", "eviction", "ratio", "candidate", *TRACED, "loss", "n_prompts", "chosen"]
    frame = pd.DataFrame(rows, columns=columns)
    numbers = dict.fromkeys(("layer_mix", "slope", "floor", "whole", "loss", "ratio"), "float64")
    return frame.astype({**numbers, "estimator": "string", "pool": "string", "chosen": "bool"})


def empty_trace(job: AllocateJob) -> pd.DataFrame:
    """The trace of an allocator that tries nothing."""
    return _trace(job, {})
