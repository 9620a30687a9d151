"""CriticalKV: an entry matters as much as what it writes into the residual stream (arXiv 2502.03805)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, InstanceOf

from baklava.errors import UserError
from baklava.eviction.base import EvictionPolicy, LayerContext, raise_protected
from baklava.eviction.snapkv import SnapKV
from baklava.eviction.wrapper import Wrapper, inner_below

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Critical(Wrapper):
    """Half of a budget goes to the best entries of the policy `inner`, half to the best once their values count.

    With the scores `a_j` of `inner`, the second half is ranked by `(a_j + epsilon) * w_j`, where
    `w_j = mean over the GQA group of ||W_o v_j||_1` is the length of what the entry adds to the stream at full
    attention. The first part is the fraction `first` of the budget, at least one entry; what `inner` protects comes
    before both and counts in the first. Both parts are one order (`merge_orders`), so a larger budget keeps what a
    smaller one does. KV caches that compete (`ada_critical_snapkv`) do so by the scores of `inner`.

    The paper bounds the change of the attention's output and takes half of the budget by attention alone; defaults are
    those of kvpress 0.5.5. There a protected entry that finds no room in the first half has to outlive the weighing;
    here it stays, as in any other policy. There a KV cache that competes keeps the best entries by `inner` up to its
    floor even where the first half is smaller; here a floor is a number of entries. A norm or a multiplier between the
    output projection and the stream is left out, in both. Over `expected_attention`, whose own weight for values
    (`use_vnorm`) is then off, this is `critical_expected_attention`: with this `epsilon`, as in the leaderboard, and on
    SmolLM2-135M without a needle answered, since the few entries that expect attention are not those that matter there
    (docs/methods.md has what another `epsilon` and `first` change).
    """

    family: ClassVar[str] = "critical"
    level: ClassVar[int] = 1

    inner: Annotated[InstanceOf[EvictionPolicy], BeforeValidator(inner_below(1))] = field(default_factory=SnapKV)
    epsilon: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1e-4
    first: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner.rescores_every is not None:
            raise UserError(f"critical cannot go over {self.inner.family}, which scores again without its values")
        if self.inner.needs_projection:
            raise UserError(f"critical cannot go over {self.inner.family}, which weighs values itself")

    @property
    def needs_projection(self) -> bool:
        return True

    def score_and_order(self, context: LayerContext, state: Any) -> tuple[Tensor, Tensor]:
        from baklava.eviction.merge_orders import merge_orders
        from baklava.eviction.written import written_lengths

        scores = self.score(context, state)
        raised = raise_protected(scores, self.inner, 0)
        return scores, merge_orders(raised, (scores + self.epsilon) * written_lengths(context), self.first)
