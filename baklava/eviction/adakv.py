"""Ada-KV: the KV heads of a layer compete for its budget (arXiv 2407.11550)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, InstanceOf, TypeAdapter

from baklava.errors import UserError
from baklava.eviction.base import EvictionPolicy, LayerContext, raise_protected
from baklava.eviction.snapkv import SnapKV

if TYPE_CHECKING:
    from torch import Tensor


def _policy(given: Any) -> EvictionPolicy:
    """Make a policy from its name or from a mapping of `family` and parameters; a policy stays as it is."""
    from baklava.eviction import POLICIES

    if isinstance(given, EvictionPolicy):
        return given
    if not isinstance(given, str | Mapping):
        raise UserError(f"a policy's name or a mapping with its family and parameters is needed, got {given!r}")
    parameters = {"family": given} if isinstance(given, str) else dict(given)
    family = parameters.pop("family", None)
    known = sorted(set(POLICIES) - {AdaKV.family})
    if family not in known:
        raise UserError(f"unknown eviction policy {family!r}; known here: {', '.join(known)}")
    return TypeAdapter(POLICIES[family]).validate_python(parameters)


@dataclass(frozen=True, kw_only=True)
class AdaKV(EvictionPolicy):
    """Scores as the policy `inner`; a layer's budget then goes to its best entries, whichever KV head has them.

    Each KV cache always keeps the fraction `floor` of its own budget, and at least one entry; entries that `inner`
    protects come next, then all others by score. The total of a layer does not change. `inner` is a policy; in a
    configuration, its name or a mapping of its `family` and parameters. Policies whose scores have the same scale in
    all heads, as attention weights do, make the most sense. If what `inner` protects depends on the budget, that is the
    cache's own budget during the competition, and the entries it won afterwards.

    The paper starts from equal budgets; here each KV cache starts from its own, so Ada-KV works with any allocator.
    The default floor is that of kvpress 0.5.5 and what the authors' scripts suggest for models with GQA (0.5 for
    others). In kvpress and here it bounds the outcome of the competition; the authors' code takes a mean of that
    outcome and the equal budgets, with weight `floor`. The leaderboard's "adakv_snapkv" is `ada_snapkv`, its
    "expected_attention" is `ada_expected_attention`; it has no `ada_h2o`. kvpress masks entries that lost; here they
    are gone.
    """

    family: ClassVar[str] = "adakv"

    inner: Annotated[InstanceOf[EvictionPolicy], BeforeValidator(_policy)] = field(default_factory=SnapKV)
    floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2

    def protected_first(self, budget: int) -> int:
        return self.inner.protected_first(budget)

    def protected_last(self, budget: int) -> int:
        return self.inner.protected_last(budget)

    def observe(self, state: Any, queries: Tensor, context: LayerContext) -> Any:
        return self.inner.observe(state, queries, context)

    def score(self, context: LayerContext, state: Any) -> Tensor:
        return self.inner.score(context, state)

    def distribute(self, scores: Tensor, budgets: Tensor) -> Tensor:
        import torch

        counts = [self._compete(row, own.tolist()) for row, own in zip(scores, budgets, strict=True)]
        return torch.stack(counts).to(budgets)

    def _compete(self, scores: Tensor, budgets: list[int]) -> Tensor:
        """Count the entries `[Hkv]` that each KV head of one batch row wins, from scores `[Hkv, S]`."""
        import torch

        n_kv_heads, n_entries = scores.shape
        rank = torch.arange(n_entries, device=scores.device)
        bids = scores.to(torch.float64)  # one scale for all heads, on which ranks up to 2 S are exact
        highest = bids.amax() + 1.0
        raised_bids = []
        for head, budget in enumerate(budgets):
            raised = raise_protected(scores[head], self.inner, budget)
            order = raised.argsort(descending=True)  # what `inner` would keep, best first
            bid = bids[head, order]
            n_protected = self.inner.protected_first(budget) + self.inner.protected_last(budget)
            n_guaranteed = int(self.floor * budget)
            if self.floor > 0 and budget > 0:
                n_guaranteed = max(1, n_guaranteed)
            bid = torch.where(rank < n_protected, highest + (n_entries - rank), bid)
            raised_bids.append(torch.where(rank < n_guaranteed, highest + 2 * n_entries, bid))
        winners = torch.stack(raised_bids).flatten().argsort(descending=True, stable=True)[: sum(budgets)]
        return torch.bincount(winners // n_entries, minlength=n_kv_heads)
