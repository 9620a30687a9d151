"""Losses of continuations under compressed caches: what search and measurements minimise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.errors import UserError
from baklava.eviction import EvictionPolicy
from baklava.experiment.jobs import AllocateJob
from baklava.inference.batch import BatchState, compress_rows, continuation_losses, prefill
from baklava.models.load import LoadedModel

MEMORY_FRACTION = 0.5  # of the memory that is free, for contexts that are kept; the rest is for the rows


@dataclass(frozen=True)
class _Read:
    """A prompt whose context was read."""

    context: BatchState
    question: list[int]
    answer: list[int]

    @property
    def n_bytes(self) -> int:
        """Of its keys and values; what a policy remembers is small beside them."""
        layers: list[Any] = self.context.cache.layers
        return sum(one.nbytes for layer in layers for one in (layer.keys, layer.values) if one is not None)


class ContinuationLosses:
    """Losses of continuations under compressed caches, many caches over one shared prefill.

    Contexts are kept for the next call as long as they fit into `memory` bytes, by default half of what is free now;
    those that do not are read again.
    """

    def __init__(self, loaded: LoadedModel, policy: EvictionPolicy, *, batch_rows: int, memory: float | None = None):
        self.loaded = loaded
        self._policy = policy
        self._batch_rows = batch_rows
        self._room = MEMORY_FRACTION * loaded.free_memory() if memory is None else memory
        self._kept: dict[Prompt, _Read] = {}

    @classmethod
    def of(cls, job: AllocateJob, loaded: LoadedModel) -> ContinuationLosses:
        """With the policy and the settings of a job that searches."""
        return cls(loaded, job.eviction.build(), batch_rows=job.search.batch_rows, memory=job.search.memory)

    def losses(self, prompt: Prompt, budgets: Sequence[Budgets]) -> NDArray[np.float64]:
        """Mean loss per answer token of one prompt under each of the budgets; without any, nothing is read.

        Raises `UserError` where memory runs out.
        """
        if not budgets:
            return np.empty(0)
        try:
            read = self._read(prompt)
            starts = range(0, len(budgets), self._batch_rows)
            return np.concatenate([self._rows(read, budgets[start : start + self._batch_rows]) for start in starts])
        except torch.OutOfMemoryError:
            raise UserError(
                f"model {self.loaded.name}: not enough memory to replay {min(len(budgets), self._batch_rows)} rows "
                "together; lower search.batch_rows or search.memory_gib"
            ) from None

    def _rows(self, read: _Read, budgets: Sequence[Budgets]) -> NDArray[np.float64]:
        cache = compress_rows(self.loaded, read.context, budgets, [self._policy] * len(budgets), share=True)
        return continuation_losses(self.loaded, cache, read.question, read.answer).double().numpy()

    def _read(self, prompt: Prompt) -> _Read:
        if prompt in self._kept:
            return self._kept[prompt]
        context, question, answer = prompt.token_ids(self.loaded)
        if not (context and question and answer):
            raise UserError(
                f"calibration prompt {prompt.index} ({prompt.task}): context, question and answer must hold a token or "
                "more; make the prompts again with `baklava calibrate`"
            )
        length = len(context) + len(question) + len(answer)
        read = _Read(prefill(self.loaded, [context], [self._policy], length), question, answer)
        if read.n_bytes <= self._room:
            self._room -= read.n_bytes
            self._kept[prompt] = read
        return read


def check_losses(losses: ArrayLike, *, model: str) -> None:
    """Raise `UserError` where a loss is no number: what is compared with it would be none either."""
    if not np.isfinite(losses).all():
        raise UserError(
            f"model {model}: some losses on the calibration prompts are no numbers; set another models.{model}.dtype"
        )


class LossSource(Protocol):
    """A `ContinuationLosses`, what keeps its losses, or a stand-in."""

    def losses(self, prompt: Prompt, budgets: Sequence[Budgets]) -> NDArray[np.float64]:
        """Mean loss per answer token of a prompt under each of the budgets."""
        ...


def prefill_seconds(loaded: LoadedModel, prompts: Sequence[Prompt]) -> float:
    """Seconds to read whole prompts, one after the other, with no policy that watches."""
    ids = [[token for part in prompt.token_ids(loaded) for token in part] for prompt in prompts]
    started = time.perf_counter()
    for one in ids:
        prefill(loaded, [one], [])
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
    return time.perf_counter() - started
