"""Replayed losses that are kept, so that measurements which were killed go on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.experiment.components import EvictionConfig, ModelConfig
from baklava.inference.continuation_loss import ContinuationLosses
from baklava.models.files import model_identity
from baklava.search.local_search import Shares
from baklava.system.append_log import AppendLog
from baklava.system.fingerprint import fingerprint

# Part of what losses are known by: raise it with a change after which they may be others.
VERSION = 2


def as_saved(loss: float) -> float | None:
    """A loss for a JSON file, which has no infinity: None for what is no number."""
    return float(loss) if np.isfinite(loss) else None


class LossStore:
    """What a `ContinuationLosses` measures, kept in a store under a fingerprint of all that determines it.

    What is no number counts as infinite. `seconds` is what measuring took, now or earlier. The model is loaded, by
    `replay`, only for what the store does not hold.
    """

    def __init__(
        self, store: AppendLog, model: ModelConfig, eviction: EvictionConfig, replay: Callable[[], ContinuationLosses]
    ):
        policy = eviction.build()
        self._name = fingerprint(VERSION, model_identity(model), [policy.family, asdict(policy)])
        self._store = store
        self._replay = replay
        self.seconds = 0.0

    @classmethod
    @contextmanager
    def at(
        cls, path: Path, model: ModelConfig, eviction: EvictionConfig, replay: Callable[[], ContinuationLosses]
    ) -> Iterator[LossStore]:
        """In the store at `path`, for one process at a time."""
        store = AppendLog(path, alone=True)
        try:
            yield cls(store, model, eviction, replay)
        finally:
            store.close()

    def losses(self, prompt: Prompt, budgets: Sequence[Budgets]) -> NDArray[np.float64]:
        """Mean loss per answer token of one prompt under each of the budgets; without any, nothing is kept."""
        if not budgets:
            return np.empty(0)
        shares = hashlib.sha256(np.stack([one.shares for one in budgets]).tobytes()).hexdigest()
        key = fingerprint(self._name, asdict(prompt), shares)
        if key not in self._store:
            started = time.perf_counter()
            losses = [as_saved(loss) for loss in self._replay().losses(prompt, budgets)]
            self._store.add({key: {"losses": losses, "seconds": time.perf_counter() - started}})
        known = self._store[key]
        self.seconds += known["seconds"]
        return np.array([np.inf if loss is None else loss for loss in known["losses"]])


class MeanLosses:
    """`refinement.Losses` of allocations: means over prompts."""

    def __init__(self, kept: LossStore, prompts: Sequence[Prompt], shape: tuple[int, int], progress: tqdm):
        self._kept = kept
        self._prompts = prompts
        self._shape = shape
        self._progress = progress

    def __call__(self, rows: Mapping[float, Sequence[Shares]]) -> dict[float, NDArray[np.float64]]:
        budgets = [Budgets.from_shares(one.reshape(self._shape)) for some in rows.values() for one in some]
        losses = np.zeros((len(self._prompts), len(budgets)))
        for i, prompt in enumerate(self._prompts):
            if budgets:
                losses[i] = self._kept.losses(prompt, budgets)
            self._progress.update()
        ends = np.cumsum([len(some) for some in rows.values()], dtype=int)
        parts = np.split(losses.mean(0), ends)[:-1]  # nothing comes after the last one
        return dict(zip(rows, parts, strict=True))
