"""The stage `curves`: measures how the loss of known continuations rises as each KV cache alone keeps less."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from itertools import product

import numpy as np
from numpy.typing import NDArray

from baklava.budgets import Budgets
from baklava.calibration.prompts import Calibration, Prompt
from baklava.experiment.jobs import CurvesJob
from baklava.importance.loss_curves import LossCurves
from baklava.inference.continuation_loss import ContinuationLosses, LossSource, check_losses
from baklava.inference.stored_losses import LossStore
from baklava.models.load import load_model
from baklava.system.progress import Progress


def shrink_alone(shape: tuple[int, int], cache: tuple[int, int], level: float) -> Budgets:
    """Budgets under which the KV cache `(layer, head)` keeps the share `level`, and all others everything."""
    shares = np.ones(shape)
    shares[cache] = level
    return Budgets.from_shares(shares)


def measure_rises(
    source: LossSource, prompts: Sequence[Prompt], *, shape: tuple[int, int], levels: Sequence[float], label: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`rises` `[P, K, L, Hkv]` and `full` `[P]`: one prefill per prompt, then one row per level and KV cache.

    The rows share the KV caches that they keep fully; each row copies only the one that is shrunk.
    """
    caches = list(product(range(shape[0]), range(shape[1])))
    variants = [shrink_alone(shape, cache, level) for level in levels for cache in caches]
    full = Budgets.uniform(n_layers=shape[0], n_kv_heads=shape[1], ratio=0.0)
    progress = Progress(prompts, desc=f"curves {label}", unit="prompt")
    losses = np.stack([source.losses(prompt, [full, *variants]) for prompt in progress])
    rises = (losses[:, 1:] - losses[:, :1]).reshape(len(prompts), len(levels), *shape)
    return rises.astype(np.float32), losses[:, 0].astype(np.float32)


def measure_curves(job: CurvesJob) -> None:
    """Measure the curves of a model under one eviction policy on all calibration prompts and write them.

    A killed measurement resumes after the last finished prompt.
    """
    calibration = Calibration.load(job.prompts)
    loaded = load_model(job.model)
    computed = ContinuationLosses(loaded, job.eviction.build(), batch_rows=job.curves.batch_rows, memory=0)
    with LossStore.at(job.output.with_suffix(".losses"), job.model, job.eviction, lambda: computed) as stored:
        rises, full = measure_rises(
            stored,
            (*calibration.profile, *calibration.search),
            shape=(loaded.n_layers, loaded.n_kv_heads),
            levels=job.curves.levels,
            label=f"{job.model.name} {job.eviction.name}",
        )
    check_losses(full, model=job.model.name)
    check_losses(rises, model=job.model.name)
    meta = {
        "path": job.model.path,
        "revision": job.model.revision,
        **job.model.arithmetic,
        "calibration": calibration.fingerprint,
        "policy": job.eviction.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    LossCurves(job.model.name, job.eviction.name, job.curves.levels, rises, full, meta).save(job.output)
