"""Lets KV caches compete for the sum of their budgets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baklava.eviction.base import EvictionPolicy, raise_protected


def compete(scores: Tensor, budgets: Sequence[int], policy: EvictionPolicy, *, floor: float) -> Tensor:
    """Count the entries `[N]` that each of `N` KV caches wins of the sum of their budgets, from scores `[N, S]`.

    Each is sure of the fraction `floor` of its own budget, and of at least one entry; what the policy protects comes
    next, then all others by score.
    """
    n_caches, n_entries = scores.shape
    rank = torch.arange(n_entries, device=scores.device)
    bids = scores.to(torch.float64)  # one scale for all, on which ranks up to 2 S are exact
    highest = bids.amax() + 1.0
    raised_bids = torch.empty_like(bids)
    own = torch.tensor(budgets)
    for budget in dict.fromkeys(budgets):
        alike = (own == budget).nonzero().flatten().to(scores.device)
        raised = raise_protected(scores[alike], policy, budget)
        bid = bids[alike].gather(-1, raised.argsort(dim=-1, descending=True))  # what the policy would keep, best first
        n_protected = policy.protected_first(budget) + policy.protected_last(budget)
        n_guaranteed = int(floor * budget)
        if floor > 0 and budget > 0:
            n_guaranteed = max(1, n_guaranteed)
        bid = torch.where(rank < n_protected, highest + (n_entries - rank), bid)
        raised_bids[alike] = torch.where(rank < n_guaranteed, highest + 2 * n_entries, bid)
    winners = raised_bids.flatten().argsort(descending=True, stable=True)[: sum(budgets)]
    return torch.bincount(winners // n_entries, minlength=n_caches)
