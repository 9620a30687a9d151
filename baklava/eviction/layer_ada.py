"""All KV caches of a model compete for its budget, layers as well as heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BeforeValidator, Field, InstanceOf

from baklava.eviction.base import EvictionPolicy
from baklava.eviction.snapkv import SnapKV
from baklava.eviction.wrapper import Wrapper, inner_below

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerAda(Wrapper):
    """Scores as the policy `inner`; the budget of the model then goes to its best entries, in whichever KV cache.

    As Ada-KV (`AdaKV`), with one competition for all layers: a KV cache always keeps the fraction `floor` of its own
    budget and at least one entry, then come entries that `inner` protects, then all others by score. The total of the
    model does not change. Above the floor nothing is left of an allocator's budgets but their sum. A high floor makes
    them the prior of the competition: with 1 they stay as they are, with 0.8 (`prior_snapkv`) a fifth is won by prompt.

    All layers must be scored before any is cut. The prefill therefore holds the full cache at its end: memory is
    saved after it, not during it.

    Over `defensive`, with a floor of 0, it is Layer-DefensiveKV (arXiv 2510.13334), named `layer_defensive`; for what
    differs see `Defensive`. No publication has it over `snapkv`: attention weights sum to one in every head, so they
    say where a head looks, not how much the head matters. kvpress 0.5.5 has no such wrapper.
    """

    family: ClassVar[str] = "layer_ada"
    level: ClassVar[int] = 2

    inner: Annotated[InstanceOf[EvictionPolicy], BeforeValidator(inner_below(2))] = field(default_factory=SnapKV)
    floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2

    @property
    def needs_all_layers(self) -> bool:
        return True

    def distribute_over_layers(self, scores: Sequence[Tensor], orders: Sequence[Tensor], budgets: Tensor) -> Tensor:
        from baklava.eviction.compete import compete_across_layers

        return compete_across_layers(scores, orders, budgets, self.inner, floor=self.floor)
