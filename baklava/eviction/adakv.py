"""Ada-KV: the KV heads of a layer compete for its budget (arXiv 2407.11550)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BeforeValidator, Field, InstanceOf

from baklava.eviction.base import EvictionPolicy
from baklava.eviction.snapkv import SnapKV
from baklava.eviction.wrapper import Wrapper, inner_below

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AdaKV(Wrapper):
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
    level: ClassVar[int] = 2

    inner: Annotated[InstanceOf[EvictionPolicy], BeforeValidator(inner_below(2))] = field(default_factory=SnapKV)
    floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2

    def distribute(self, scores: Tensor, order: Tensor, budgets: Tensor) -> Tensor:
        import torch

        from baklava.eviction.compete import compete

        counts = [
            compete(scores[row], order[row], own.tolist(), self.inner, floor=self.floor)
            for row, own in enumerate(budgets)
        ]
        return torch.stack(counts).to(budgets)
