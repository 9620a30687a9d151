"""Lets KV caches compete for the sum of their budgets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baklava.eviction.base import EvictionPolicy, raise_protected


def compete(scores: Tensor, order: Tensor, budgets: Sequence[int], policy: EvictionPolicy, *, floor: float) -> Tensor:
    """Count the entries `[N]` that each of `N` KV caches wins of the sum of their budgets.

    They compete by what the policy makes of its scores and order `[N, S]` (`EvictionPolicy.bids`). Each is sure of the
    fraction `floor` of its own budget, and of at least one entry; what the policy protects comes next, then all others.
    """
    n_caches, n_entries = scores.shape
    rank = torch.arange(n_entries, device=scores.device)
    own = torch.tensor(budgets)
    groups = {budget: (own == budget).nonzero().flatten().to(scores.device) for budget in dict.fromkeys(budgets)}
    bids = torch.empty_like(scores, dtype=torch.float64)  # one scale for all, on which ranks up to 2 S are exact
    for budget, alike in groups.items():
        bids[alike] = policy.bids(scores[alike], order[alike], budget).double()
    highest = bids.amax() + 1.0
    raised_bids = torch.empty_like(bids)
    for budget, alike in groups.items():
        raised = raise_protected(bids[alike], policy, budget)
        bid = bids[alike].gather(-1, raised.argsort(dim=-1, descending=True))  # what the policy would keep, best first
        n_protected = policy.protected_first(budget) + policy.protected_last(budget)
        n_guaranteed = int(floor * budget)
        if floor > 0 and budget > 0:
            n_guaranteed = max(1, n_guaranteed)
        bid = torch.where(rank < n_protected, highest + (n_entries - rank), bid)
        raised_bids[alike] = torch.where(rank < n_guaranteed, highest + 2 * n_entries, bid)
    winners = raised_bids.flatten().argsort(descending=True, stable=True)[: sum(budgets)]
    return torch.bincount(winners // n_entries, minlength=n_caches)


def compete_across_layers(
    scores: Sequence[Tensor], orders: Sequence[Tensor], budgets: Tensor, policy: EvictionPolicy, *, floor: float
) -> Tensor:
    """As `compete`, from scores and order `[Hkv, S]` of each layer and budgets `[L, Hkv]`; as many counts."""
    device = scores[0].device  # layers may be on several
    together, order = (torch.cat([layer.to(device) for layer in layers]) for layers in (scores, orders))
    return compete(together, order, budgets.flatten().tolist(), policy, floor=floor).view(budgets.shape).to(budgets)
