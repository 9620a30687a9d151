"""DefensiveKV: an entry counts by the most that any query made of it, not by the mean (arXiv 2510.13334)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from baklava.eviction.base import LayerContext
from baklava.eviction.window import KernelSize, Windowed, WindowSize, average_neighbours

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Defensive(Windowed):
    """Scores an entry by the largest attention that one of the last `window_size` queries pays it.

    The attention of each query to the entries before the window is averaged over `kernel_size` neighbours and scaled
    back to its sum. An entry's risk `r_j` is the maximum over the window's queries and the GQA group, and at least the
    mean risk of its KV cache: what was never looked at may be needed yet. The score is `r_j w_j / sum over KV heads of
    w_j`, with `w_j = mean over the group of ||W_o v_j||_1` (see `Critical`).

    The entries that together got the fraction `mass` of a KV cache's mean attention come before all others, the most
    attended first; the one that reaches it is not among them. Where KV caches compete (`ada_defensive`,
    `layer_defensive`), as much of each one's first part as its own budget has room for beside the window competes
    above the highest score of its layer, and all other entries by their scores. The window is protected.

    Definition and defaults are those of the authors' code. There `mass` is reduced by the mean attention on the last
    entries *before* the window, where the window's own seems to be meant; here it is not. There windows and first parts
    compete by exactly the highest score of their layer; here first parts compete by their mean attention above it, and
    windows are kept in any case. `ada_defensive` has a floor beside it. kvpress 0.5.5 has no such method.
    """

    family: ClassVar[str] = "defensive"

    window_size: WindowSize = 32
    kernel_size: KernelSize = 5
    mass: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9

    @property
    def needs_projection(self) -> bool:
        return True

    def score(self, context: LayerContext, state: Tensor) -> Tensor:
        return self.score_and_order(context, state)[0]

    def score_and_order(self, context: LayerContext, state: Tensor) -> tuple[Tensor, Tensor]:
        import torch
        from torch.nn import functional

        from baklava.eviction.written import written_lengths

        window = state.shape[2]
        lengths = written_lengths(context)[..., :-window]  # [B, Hkv, S - window]
        if not lengths.shape[-1]:
            nothing = lengths.new_zeros(context.keys.shape[:3])
            return nothing, nothing
        risks, means = (torch.stack(parts, 1) for parts in zip(*self._attention(context, state), strict=True))
        smallest = torch.finfo(lengths.dtype).tiny
        # In float64, so that adding the highest score leaves the differences of attention as they are.
        scores = (risks * lengths / lengths.sum(1, keepdim=True).clamp(min=smallest)).double()
        order = torch.where(self._is_first(means), means.double() + scores.amax((1, 2), keepdim=True), scores)
        return functional.pad(scores, (0, window)), functional.pad(order, (0, window))

    @property
    def ranks_by_bids(self) -> bool:
        return True

    def bids(self, scores: Tensor, order: Tensor, budget: int) -> Tensor:
        import torch

        n_first = min(max(0, budget - self.window_size), scores.shape[-1])
        first = order.topk(n_first, dim=-1).indices
        return scores.scatter(-1, first, torch.gather(order, -1, first))

    def _attention(self, context: LayerContext, queries: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each KV head the risk and the mean attention of entries before the window, both `[B, S - window]`."""
        import torch

        from baklava.eviction.observed import weights_of_head

        window = queries.shape[2]
        by_head = []
        for head in range(context.keys.shape[1]):
            weights = weights_of_head(queries, context, head)[..., :-window]  # [B, group, window, S - window]
            pooled = average_neighbours(weights, self.kernel_size)
            sums = pooled.sum(-1, keepdim=True).clamp(min=torch.finfo(pooled.dtype).tiny)
            risk = (pooled * (weights.sum(-1, keepdim=True) / sums)).amax((1, 2))
            by_head.append((risk.maximum(risk.mean(-1, keepdim=True)), weights.mean((1, 2))))
        return by_head

    def _is_first(self, means: Tensor) -> Tensor:
        """Which entries belong to the first part, from their mean attention `[B, Hkv, n]`."""
        import torch

        ordered, order = means.sort(dim=-1, descending=True, stable=True)
        before_mass = ordered.cumsum(-1) < self.mass * ordered.sum(-1, keepdim=True)
        return torch.zeros_like(before_mass).scatter(-1, order, before_mass)
