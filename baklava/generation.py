"""Prefill once, then go on from the same context with many budgets at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baklava.budgets import Budgets
from baklava.cache import BudgetedCache
from baklava.context import ContextCache
from baklava.eviction import EvictionPolicy
from baklava.models.load import LoadedModel


@torch.inference_mode()
def prefill(loaded: LoadedModel, context: Sequence[int], policies: Sequence[EvictionPolicy]) -> ContextCache:
    """The full cache of one context, watched by the eviction policies that will compress it."""
    cache = ContextCache(loaded.model.config, policies)
    ids = torch.tensor([list(context)], device=loaded.device)
    loaded.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def compressed_rows(
    loaded: LoadedModel, context: ContextCache, budgets: Sequence[Budgets], policies: Sequence[EvictionPolicy]
) -> BudgetedCache:
    """One cache row per budget, all from the same context."""
    return BudgetedCache.from_context(loaded.model.config, context, budgets, policies)


@torch.inference_mode()
def continuation_losses(
    loaded: LoadedModel, cache: BudgetedCache, question: Sequence[int], answer: Sequence[int]
) -> Tensor:
    """Mean negative log-likelihood of the answer's tokens in every cache row, `[B]`; fills the cache."""
    n_rows = cache.kept_entries().shape[1]
    ids = torch.tensor([*question, *answer], device=loaded.device).expand(n_rows, -1)
    logits = loaded.model(
        ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=len(answer)
    ).logits.float()  # [B, A, vocab]
    targets = ids[:, -len(answer) :]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return losses.mean(-1).cpu()


@torch.inference_mode()
def greedy_answers(
    loaded: LoadedModel, cache: BudgetedCache, question: Sequence[int], *, max_new_tokens: int
) -> list[list[int]]:
    """Greedy continuation of every cache row after the question, until the end token or `max_new_tokens`.

    Rows that have ended leave the batch.
    """
    n_rows = cache.kept_entries().shape[1]
    answers: list[list[int]] = [[] for _ in range(n_rows)]
    alive = list(range(n_rows))
    stop = _stop_tokens(loaded)
    ids = torch.tensor([list(question)], device=loaded.device).expand(n_rows, -1)
    for _ in range(max_new_tokens):
        logits = loaded.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        chosen = logits.argmax(-1)
        going = []
        for place, (row, token) in enumerate(zip(alive, chosen.tolist(), strict=True)):
            if token not in stop:
                answers[row].append(token)
                going.append(place)
        if not going:
            break
        if len(going) < len(alive):
            rows = torch.tensor(going, device=loaded.device)
            cache.select_rows(rows)
            chosen = chosen[rows]
            alive = [alive[place] for place in going]
        ids = chosen[:, None]
    return answers


def _stop_tokens(loaded: LoadedModel) -> set[int]:
    stop = loaded.model.generation_config.eos_token_id
    return set(stop if isinstance(stop, list) else [stop]) - {None}
