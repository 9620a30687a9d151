"""A store of continuation losses, from which killed measurements resume."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.experiment.components import EvictionConfig, ModelConfig
from baklava.experiment.settings import Objective
from baklava.inference.continuation_loss import ContinuationLosses, prefill_seconds
from baklava.inference.influence import LEVELS
from baklava.models.files import model_identity
from baklava.system.append_log import AppendLog
from baklava.system.fingerprint import fingerprint

# Part of the fingerprint of stored losses: raise it with a change after which they may be others.
VERSION = 3


class LossStore:
    """Losses that a `ContinuationLosses` measures, stored under a fingerprint of all that determines them.

    Losses that are not finite count as infinite. `measured` gives the `ContinuationLosses`; it is called, and so the
    model loaded, only for what the store does not hold.
    """

    def __init__(
        self,
        log: AppendLog,
        model: ModelConfig,
        eviction: EvictionConfig,
        measured: Callable[[], ContinuationLosses],
        objective: Objective = "loss",
    ):
        policy = eviction.build()
        another = [] if objective == "loss" else [objective]  # losses had no name when they were all there was
        self._name = fingerprint(VERSION, model_identity(model), [policy.family, asdict(policy)], *another)
        self._log = log
        self._measured = measured
        self._seconds: dict[str, float] = {}

    @classmethod
    @contextmanager
    def at(
        cls, path: Path, model: ModelConfig, eviction: EvictionConfig, measured: Callable[[], ContinuationLosses]
    ) -> Iterator[LossStore]:
        """The store at `path`, for one process at a time."""
        log = AppendLog(path, alone=True)
        try:
            yield cls(log, model, eviction, measured)
        finally:
            log.close()

    @property
    def seconds(self) -> float:
        """How long it took, now or earlier, to measure the losses that were asked for so far."""
        return sum(self._seconds.values())

    def losses(self, prompt: Prompt, budgets: Sequence[Budgets]) -> NDArray[np.float64]:
        """Mean loss per answer token of one prompt under each of the budgets; without any, nothing is stored."""
        if not budgets:
            return np.empty(0)
        shares = hashlib.sha256(np.stack([one.shares for one in budgets]).tobytes()).hexdigest()
        bits = [None if one.bits is None else one.bits.tolist() for one in budgets]
        quantised = [bits, [one.ratio for one in budgets]] if any(bits) else []
        constraints = [one.constraints() for one in budgets]
        constrained = [constraints] if any(constraints) else []
        key = fingerprint(self._name, asdict(prompt), shares, *quantised, *constrained)
        losses = self._stored(
            key, "losses", lambda measured: [_finite(loss) for loss in measured.losses(prompt, budgets)]
        )
        return np.array([np.inf if loss is None else loss for loss in losses])

    def influence(self, prompts: Sequence[Prompt], budgets: Budgets) -> NDArray[np.float64]:
        """First-order change of the mean loss `[K, L, Hkv]`, if one KV cache kept one of `influence.LEVELS`."""
        shares = hashlib.sha256(budgets.shares.tobytes()).hexdigest()
        asked = [asdict(prompt) for prompt in prompts]
        key = fingerprint(self._name, "influence", LEVELS, asked, shares, *budgets.constraints())
        return np.array(self._stored(key, "influence", lambda measured: measured.influence(prompts, budgets).tolist()))

    def precision(self, prompts: Sequence[Prompt], budgets: Budgets, widths: Sequence[int]) -> NDArray[np.float64]:
        """First-order change of the mean loss `[2, W, L, Hkv]`, if a KV cache's keys, or values, had another width."""
        shares = hashlib.sha256(budgets.shares.tobytes()).hexdigest()
        bits = None if budgets.bits is None else budgets.bits.tolist()
        asked = [asdict(prompt) for prompt in prompts]
        key = fingerprint(self._name, "precision", list(widths), asked, shares, bits)
        return np.array(
            self._stored(key, "precision", lambda measured: measured.precision(prompts, budgets, widths).tolist())
        )

    def _stored(self, key: str, name: str, measure: Callable[[ContinuationLosses], list[Any]]) -> list[Any]:
        """What the store holds under a key, measured now where it holds nothing; its seconds count from here on."""
        if key not in self._log:
            started = time.perf_counter()
            self._log.add({key: {name: measure(self._measured()), "seconds": time.perf_counter() - started}})
        stored = self._log[key]
        self._seconds[key] = stored["seconds"]
        return stored[name]

    def prefill_seconds(self, prompts: Sequence[Prompt]) -> float:
        """How long it took, now or earlier, to read the prompts once, one after the other."""
        key = fingerprint(self._name, "prefill", [asdict(prompt) for prompt in prompts])
        if key not in self._log:
            self._log.add({key: {"seconds": prefill_seconds(self._measured().loaded, prompts)}})
        return self._log[key]["seconds"]


def _finite(loss: float) -> float | None:
    """A loss as JSON holds it: None where it is not finite, for which JSON has no number."""
    return float(loss) if np.isfinite(loss) else None
