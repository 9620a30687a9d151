"""Budgets from measured losses: what the refinement begins with, what it measures, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from baklava.allocation import Baklava, BaklavaMeasured, Fitted, Uniform
from baklava.budgets import Budgets
from baklava.calibration.prompts import Calibration
from baklava.experiment.jobs import AllocateJob
from baklava.importance import CONTROLS
from baklava.importance.profile import Profile
from baklava.inference.continuation_loss import ContinuationLosses, check_losses
from baklava.inference.stored_losses import LossStore, MeanLosses, as_saved
from baklava.models.load import load_model
from baklava.search.local_search import LocalSearch, Shares, refine
from baklava.search.mapping import searched_budgets

UNIFORM = "uniform"
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


def joint_budgets(job: AllocateJob, allocator: BaklavaMeasured, profile: Profile) -> Fitted:
    """Refined budgets for every ratio of the job, and what was tried."""
    prompts = Calibration.load(job.prompts).search
    replay = cache(lambda: ContinuationLosses.of(job, load_model(job.model)))
    shape = (profile.n_layers, profile.n_kv_heads)
    n_steps = len(prompts) * (2 + 2 * allocator.rounds)
    searched = searched_budgets(job, Baklava(name="baklava"), profile).budgets if allocator.start == "search" else {}
    with (
        tqdm(total=n_steps, desc=f"refine {job.model.name} {job.allocator.name}", unit="prompt") as progress,
        LossStore.at(job.losses, job.model, job.eviction, replay) as kept,
    ):
        losses = MeanLosses(kept, prompts, shape, progress)
        [loss_full] = losses({0.0: [np.ones(profile.n_layers * profile.n_kv_heads)]})[0.0]
        check_losses(loss_full, model=job.model.name)
        found = refine(
            {ratio: starts(allocator, profile, ratio, searched.get(ratio)) for ratio in job.budgets},
            losses,
            rounds=allocator.rounds,
            step=allocator.step,
            floor=allocator.floor,
        )
    check_losses([one.best.loss for one in found.values()], model=job.model.name)
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


def _origin(found: LocalSearch) -> dict[str, Any]:
    """Where the allocation at hand comes from, and what it and others lose."""
    uniform = next(trial for trial in found.trials if trial.move == UNIFORM)
    return {
        "start": found.start.move,
        "move": found.best.move,
        "loss": found.best.loss,
        "loss_start": as_saved(found.start.loss),
        "loss_uniform": as_saved(uniform.loss),
        "n_candidates": len(found.trials),
    }


def _trace(job: AllocateJob, found: Mapping[float, LocalSearch], *, n_prompts: int) -> pd.DataFrame:
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
