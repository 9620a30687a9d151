"""Merges two orders of entries into one, in which every budget is filled from both."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_orders(first: Tensor, then: Tensor, fraction: float) -> Tensor:
    """Scores `[..., S]` whose best `n` are the best `int(fraction * n)` by `first`, and the best others by `then`.

    At least one is the best by `first`, unless the fraction is 0. These sets are nested: from `n` to `n + 1` one entry
    is added, to the part of `first` or that of `then`. So they are an order. An entry comes in with the first `n` of
    either part; how far down `then` a budget reaches, past entries that `first` has chosen, is found by bisection for
    all budgets at once.
    """
    length = first.shape[-1]
    budget = torch.arange(1, length + 1, device=first.device)
    n_first = (fraction * budget.double()).long().clamp(min=min(1, int(fraction > 0)), max=length)
    first_rank, then_rank = _ranks(first), _ranks(then)
    at_first = torch.searchsorted(n_first, first_rank, right=True)  # index of the budget with which `first` chooses it
    low = torch.zeros_like(first_rank)
    high = torch.full_like(first_rank, length)  # budgets `[..., S]`, ascending and so are their reaches
    for _ in range(length.bit_length()):
        reach = (low + high) // 2
        in_both = torch.maximum(at_first, _reached(reach, then_rank))
        n_both = first_rank.new_zeros(*first_rank.shape[:-1], length + 1)
        n_both = n_both.scatter_add_(-1, in_both, torch.ones_like(in_both)).cumsum(-1)[..., :length]
        enough = reach - n_both >= budget - n_first
        low, high = torch.where(enough, low, reach + 1), torch.where(enough, reach, high)
    order = torch.minimum(at_first, _reached(low, then_rank))
    return (length - order).to(torch.promote_types(first.dtype, torch.float32))


def _ranks(scores: Tensor) -> Tensor:
    """The rank of every entry, 0 for the best; of equal ones the first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, rank)


def _reached(reach: Tensor, rank: Tensor) -> Tensor:
    """The index of the first budget that reaches beyond a rank; the number of budgets if none does."""
    return torch.searchsorted(reach.contiguous(), rank.contiguous(), right=True)
