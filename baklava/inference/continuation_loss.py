"""Continuation loss: the teacher-forced loss of a prompt's answer after its context was compressed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.errors import UserError
from baklava.eviction import EvictionPolicy
from baklava.experiment.jobs import AllocateJob
from baklava.experiment.settings import Objective
from baklava.inference.batch import (
    BatchState,
    compress_rows,
    continuation_divergences,
    continuation_losses,
    prefill,
)
from baklava.inference.influence import measure_influence, read_continuation
from baklava.models.load import LoadedModel

MEMORY_FRACTION = 0.5  # of the free memory, for prefilled contexts; the remainder is for the rows


@dataclass
class _PrefilledPrompt:
    """A prompt whose context is in a full cache, and once it was needed, what the full cache would write."""

    context: BatchState
    question: list[int]
    answer: list[int]
    reference: Tensor | None = None  # log-probabilities [answer, vocabulary]

    def n_bytes(self, vocabulary: int) -> int:
        """Bytes of its keys and values, and of the reference; what a policy remembers is small beside them."""
        layers: list[Any] = self.context.cache.layers
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None]
        return sum(tensor.nbytes for tensor in tensors) + 4 * len(self.answer) * vocabulary


class ContinuationLosses:
    """Measures continuation losses, of many compressed caches from one shared prefill.

    Prefilled contexts are kept for the next call as long as they fit into `memory` bytes, by default half of what is
    free now; the others are read again.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        policy: EvictionPolicy,
        *,
        batch_rows: int,
        memory: float | None = None,
        objective: Objective = "loss",
    ):
        self.loaded = loaded
        self._objective: Objective = objective
        self._policy = policy
        self._batch_rows = batch_rows
        self._free = MEMORY_FRACTION * loaded.free_memory() if memory is None else memory
        self._kept: dict[Prompt, _PrefilledPrompt] = {}
        self._told = False  # that not all contexts are kept

    @classmethod
    def of(cls, job: AllocateJob, loaded: LoadedModel) -> ContinuationLosses:
        """Take policy and settings from a job that searches."""
        search = job.search
        return cls(
            loaded,
            job.eviction.build(),
            batch_rows=search.batch_rows,
            memory=search.memory,
            objective=search.objective,
        )

    def losses(self, prompt: Prompt, budgets: Sequence[Budgets]) -> NDArray[np.float64]:
        """Mean loss per answer token of one prompt under each of the budgets; without budgets, nothing is read.

        Raises `UserError` if memory runs out.
        """
        if not budgets:
            return np.empty(0)
        with self._enough_memory(min(len(budgets), self._batch_rows)):
            prefilled = self._prefill(prompt)
            starts = range(0, len(budgets), self._batch_rows)
            return np.concatenate(
                [self._losses(prefilled, budgets[start : start + self._batch_rows]) for start in starts]
            )

    @contextmanager
    def _enough_memory(self, n_rows: int) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise UserError(
                f"model {self.loaded.name}: not enough memory to read {n_rows} rows together; "
                "lower search.batch_rows or search.memory_gib"
            ) from None

    def _losses(self, prefilled: _PrefilledPrompt, budgets: Sequence[Budgets]) -> NDArray[np.float64]:
        """Losses of at most `batch_rows` budgets, computed together."""
        if self._objective == "loss":
            rows = self._compress(prefilled, budgets)
            return continuation_losses(self.loaded, rows, prefilled.question, prefilled.answer).double().numpy()
        n_layers, n_kv_heads = budgets[0].shape
        full = Budgets.uniform(n_layers=n_layers, n_kv_heads=n_kv_heads, ratio=0.0)
        rows = self._compress(prefilled, [full, *budgets])
        divergences = continuation_divergences(self.loaded, rows, prefilled.question, prefilled.answer)
        return divergences[1:].double().numpy()

    def _compress(self, prefilled: _PrefilledPrompt, budgets: Sequence[Budgets]) -> BatchState:
        return compress_rows(self.loaded, prefilled.context, budgets, [self._policy] * len(budgets), share=True)

    def influence(self, prompts: Sequence[Prompt], budgets: Budgets) -> NDArray[np.float64]:
        """First-order change of the mean loss `[K, L, Hkv]`, if one KV cache kept one of `influence.LEVELS`."""
        with self._enough_memory(1):
            return np.mean([self._influence(self._prefill(prompt), budgets) for prompt in prompts], 0)

    def precision(self, prompts: Sequence[Prompt], budgets: Budgets, widths: Sequence[int]) -> NDArray[np.float64]:
        """First-order change of the mean loss `[2, W, L, Hkv]`, if a KV cache's keys, or values, had another width.

        All are in the bits of the budgets.
        """
        with self._enough_memory(1):
            return np.mean([self._influence(self._prefill(prompt), budgets, widths) for prompt in prompts], 0)

    def _influence(
        self, prefilled: _PrefilledPrompt, budgets: Budgets, widths: Sequence[int] = ()
    ) -> NDArray[np.float64]:
        if self._objective == "divergence" and prefilled.reference is None:
            full = Budgets.uniform(n_layers=budgets.shape[0], n_kv_heads=budgets.shape[1], ratio=0.0)
            tokens = [*prefilled.question, *prefilled.answer][:-1]
            with torch.no_grad():
                _, logits = read_continuation(
                    self.loaded, prefilled.context, full, self._policy, tokens, len(prefilled.answer)
                )
            prefilled.reference = logits.log_softmax(-1)
        return measure_influence(
            self.loaded,
            prefilled.context,
            budgets,
            self._policy,
            prefilled.question,
            prefilled.answer,
            prefilled.reference,
            widths,
        )

    def _prefill(self, prompt: Prompt) -> _PrefilledPrompt:
        if prompt in self._kept:
            return self._kept[prompt]
        context, question, answer = prompt.token_ids(self.loaded)
        if not (context and question and answer):
            raise UserError(
                f"calibration prompt {prompt.index} ({prompt.task}): context, question and answer must hold a token or "
                "more; make the prompts again with `baklava calibrate`"
            )
        length = len(context) + len(question) + len(answer)
        prefilled = _PrefilledPrompt(prefill(self.loaded, [context], [self._policy], length), question, answer)
        n_bytes = prefilled.n_bytes(self.loaded.model.config.get_text_config(decoder=True).vocab_size)
        if n_bytes <= self._free:
            self._free -= n_bytes
            self._kept[prompt] = prefilled
        elif not self._told:
            print(
                f"model {self.loaded.name}: memory for the contexts of {len(self._kept)} prompts, the others are read "
                "again every time; search.memory_gib grants more",
                file=sys.stderr,
            )
            self._told = True
        return prefilled


def check_losses(losses: ArrayLike, *, model: str) -> None:
    """Raise `UserError` if a loss is NaN or infinite: nothing can be compared with it."""
    if not np.isfinite(losses).all():
        raise UserError(
            f"model {model}: some losses on the calibration prompts are NaN or infinite; "
            f"set another models.{model}.dtype"
        )


class LossSource(Protocol):
    """Where losses come from: a `ContinuationLosses`, a loss store, or a stand-in in tests."""

    def losses(self, prompt: Prompt, budgets: Sequence[Budgets]) -> NDArray[np.float64]:
        """Mean loss per answer token of a prompt under each of the budgets."""
        ...


class InfluenceSource(LossSource, Protocol):
    """A source of losses that knows what each KV cache contributes to them."""

    def influence(self, prompts: Sequence[Prompt], budgets: Budgets) -> NDArray[np.float64]:
        """First-order change of the mean loss `[K, L, Hkv]`, if one KV cache kept one of `influence.LEVELS`."""
        ...

    def precision(self, prompts: Sequence[Prompt], budgets: Budgets, widths: Sequence[int]) -> NDArray[np.float64]:
        """First-order change of the mean loss `[2, W, L, Hkv]`, if a KV cache's keys, or values, had another width.

        All are in the bits of the budgets.
        """
        ...


def prefill_seconds(loaded: LoadedModel, prompts: Sequence[Prompt]) -> float:
    """Seconds to read full prompts, one after the other, without an eviction policy."""
    ids = [list(chain.from_iterable(prompt.token_ids(loaded))) for prompt in prompts]
    started = time.perf_counter()
    for tokens in ids:
        prefill(loaded, [tokens], [])
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
    return time.perf_counter() - started
