"""Losses of continuations under compressed caches: what search and measurements minimise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baklava.budgets import Budgets
from baklava.calibration import Prompt
from baklava.eviction import EvictionPolicy
from baklava.generation import compressed, continuation_losses, prefill
from baklava.models.load import LoadedModel


class Replay:
    """Losses of continuations under compressed caches, many caches over one shared prefill."""

    def __init__(self, loaded: LoadedModel, policy: EvictionPolicy, *, batch_rows: int):
        self._loaded = loaded
        self._policy = policy
        self._batch_rows = batch_rows

    def losses(self, prompt: Prompt, budgets: Sequence[Budgets]) -> NDArray[np.float64]:
        """Mean loss per answer token of one prompt under each of the budgets."""
        context, question, answer = prompt.token_ids(self._loaded)
        full = prefill(self._loaded, [context], [self._policy])
        parts = []
        for start in range(0, len(budgets), self._batch_rows):
            rows = budgets[start : start + self._batch_rows]
            cache = compressed(self._loaded, full, rows, [self._policy] * len(rows), share=True)
            parts.append(continuation_losses(self._loaded, cache, question, answer).double().numpy())
        return np.concatenate(parts)
