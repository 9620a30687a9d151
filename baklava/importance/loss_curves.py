"""Measured importance: how the loss of known continuations rises as each KV cache, alone, keeps less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from baklava.budgets import Budgets
from baklava.calibration.run import Calibration, Prompt
from baklava.errors import UserError
from baklava.experiment.jobs import CurvesJob
from baklava.experiment.schema import EvictionConfig
from baklava.inference.continuation_loss import ContinuationLosses, LossSource, check_losses
from baklava.inference.stored_losses import LossStore
from baklava.models.load import load_model
from baklava.system.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from baklava.importance.profile import Profile

SCHEMA = 1
WHAT = "file of curves"
HINT = "`baklava curves`"


@dataclass(frozen=True, eq=False)
class LossCurves:
    """What it costs that one KV cache keeps the part `levels[k]` of the context, and all others everything.

    `rises` `[P, K, L, Hkv]`: the loss (nats per answer token) less that of the full cache, `full` `[P]`, per prompt.
    Measured under one eviction policy, `eviction`. `meta` says on what: model path and revision, calibration
    fingerprint, the policy's parameters, versions.
    """

    model: str
    eviction: str
    levels: tuple[float, ...]
    rises: NDArray[np.float32]
    full: NDArray[np.float32]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_layers, n_kv_heads)."""
        return self.rises.shape[2], self.rises.shape[3]

    def mean(self) -> NDArray[np.float64]:
        """Mean rise over the prompts, `[K, L, Hkv]`."""
        return self.rises.astype(np.float64).mean(0)

    def standard_error(self) -> NDArray[np.float64]:
        """Of that mean, `[K, L, Hkv]`; NaN where there is a single prompt."""
        n = len(self.rises)
        if n < 2:
            return np.full(self.rises.shape[1:], np.nan)
        return self.rises.astype(np.float64).std(0, ddof=1) / n**0.5

    def importance(self) -> NDArray[np.float64]:
        """The score `measured` of each KV cache, `[L, Hkv]`: its mean rise over the levels."""
        return self.mean().mean(0)

    def save(self, path: Path) -> None:
        """Write a safetensors file with a JSON header, atomically."""
        header = {"model": self.model, "eviction": self.eviction, "levels": list(self.levels), **self.meta}
        write_tensors(path, {"rises": self.rises, "full": self.full}, header, schema=SCHEMA, what=WHAT)

    @classmethod
    def load(cls, path: Path, profile: Profile, eviction: EvictionConfig) -> LossCurves:
        """Read the curves that go with a profile and a policy.

        Raises `UserError` for a missing, broken or newer file, and for curves of another model or policy.
        """
        meta, arrays = read_tensors(path, schema=SCHEMA, what=WHAT, hint=HINT)
        try:
            curves = cls(
                meta.pop("model"),
                meta.pop("eviction"),
                tuple(meta.pop("levels")),
                arrays["rises"],
                arrays["full"],
                meta,
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not a readable {WHAT} ({error})") from None
        n_prompts = len(curves.full)
        expected = (n_prompts, len(curves.levels), profile.n_layers, profile.n_kv_heads)
        if curves.model != profile.model or curves.rises.shape != expected:
            raise UserError(
                f"{path}: curves of {curves.model}, {list(curves.rises.shape)}, do not go with the profile of "
                f"{profile.model}, {list(expected)}: prompts, levels, layers, KV heads; make them again with {HINT}"
            )
        if curves.meta.get("policy") != eviction.model_dump(mode="json"):
            raise UserError(
                f"{path}: curves of the eviction policy {curves.eviction} with other parameters or another name than "
                f"{eviction.name}; make them again with {HINT}"
            )
        return curves


def one_alone(shape: tuple[int, int], cache: tuple[int, int], level: float) -> Budgets:
    """Budgets under which the KV cache `(layer, head)` keeps the part `level`, and all others everything."""
    shares = np.ones(shape)
    shares[cache] = level
    return Budgets.from_shares(shares)


def measure_curves(
    measured: LossSource, prompts: Sequence[Prompt], *, shape: tuple[int, int], levels: Sequence[float], label: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`rises` `[P, K, L, Hkv]` and `full` `[P]`: one prefill per prompt, then a row per level and KV cache.

    The rows read what their KV caches keep whole from that prefill; each holds a copy only of the one that shrank.
    """
    caches = list(product(range(shape[0]), range(shape[1])))
    variants = [one_alone(shape, cache, level) for level in levels for cache in caches]
    full = Budgets.uniform(n_layers=shape[0], n_kv_heads=shape[1], ratio=0.0)
    losses = np.stack(
        [measured.losses(prompt, [full, *variants]) for prompt in tqdm(prompts, desc=f"curves {label}", unit="prompt")]
    )
    rises = (losses[:, 1:] - losses[:, :1]).reshape(len(prompts), len(levels), *shape)
    return rises.astype(np.float32), losses[:, 0].astype(np.float32)


def curves(job: CurvesJob) -> None:
    """Measure the curves of a model under one eviction policy on all calibration prompts and write them.

    Killed, it goes on after the last prompt.
    """
    calibration = Calibration.load(job.prompts)
    loaded = load_model(job.model)
    replay = ContinuationLosses(loaded, job.eviction.build(), batch_rows=job.curves.batch_rows, memory=0)
    with LossStore.at(job.output.with_suffix(".losses"), job.model, job.eviction, lambda: replay) as kept:
        rises, full = measure_curves(
            kept,
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
        "dtype": job.model.dtype,
        "calibration": calibration.fingerprint,
        "policy": job.eviction.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    LossCurves(job.model.name, job.eviction.name, job.curves.levels, rises, full, meta).save(job.output)
