"""The base of policies that go over another one, `inner`, which observes and scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from baklava.errors import UserError
from baklava.eviction.base import EvictionPolicy, LayerContext

if TYPE_CHECKING:
    from torch import Tensor

    from baklava.eviction.held import HeldEntries


@dataclass(frozen=True, kw_only=True)
class Wrapper(EvictionPolicy):
    """Does what `inner` does: in a configuration a policy's name, or a mapping of its `family` and parameters."""

    inner: EvictionPolicy

    def __post_init__(self) -> None:
        if self.inner.level >= self.level:
            raise UserError(f"{self.family} cannot go over {self.inner.family}; give it a policy that only scores")

    @property
    def needs_projection(self) -> bool:
        return self.inner.needs_projection

    def protected_first(self, budget: int) -> int:
        return self.inner.protected_first(budget)

    def protected_last(self, budget: int) -> int:
        return self.inner.protected_last(budget)

    def observe(self, state: Any, queries: Tensor, context: LayerContext) -> Any:
        return self.inner.observe(state, queries, context)

    def score(self, context: LayerContext, state: Any) -> Tensor:
        return self.inner.score(context, state)

    def score_and_order(self, context: LayerContext, state: Any) -> tuple[Tensor, Tensor]:
        return self.inner.score_and_order(context, state)

    def bids(self, scores: Tensor, order: Tensor, budget: int) -> Tensor:
        return self.inner.bids(scores, order, budget)

    @property
    def ranks_by_bids(self) -> bool:
        return self.inner.ranks_by_bids

    @property
    def rescores_every(self) -> int | None:
        return self.inner.rescores_every

    @property
    def adds_scores(self) -> bool:
        return self.inner.adds_scores

    def n_queries(self, n_new: int) -> int:
        return self.inner.n_queries(n_new)

    def rescore(self, held: HeldEntries, queries: Tensor, query_positions: Tensor) -> Tensor:
        return self.inner.rescore(held, queries, query_positions)


def inner_below(level: int) -> Callable[[Any], EvictionPolicy]:
    """Makes a policy of a lower level from its name or from a mapping; a policy stays as it is."""

    def make(given: Any) -> EvictionPolicy:
        from baklava.eviction import POLICIES

        if isinstance(given, EvictionPolicy):
            return given
        if not isinstance(given, str | Mapping):
            raise UserError(f"a policy's name or a mapping with its family and parameters is needed, got {given!r}")
        parameters = {"family": given} if isinstance(given, str) else dict(given)
        family = parameters.pop("family", None)
        known = sorted(name for name, policy in POLICIES.items() if policy.level < level)
        if family not in known:
            raise UserError(f"unknown eviction policy {family!r}; known here: {', '.join(known)}")
        return TypeAdapter(POLICIES[family]).validate_python(parameters)

    return make
