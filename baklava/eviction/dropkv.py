"""DropKV: how far a head's output moves if one entry is gone (openreview.net/forum?id=MqfNzH3TVH)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from baklava.eviction.base import LayerContext
from baklava.eviction.window import KernelSize, Windowed, WindowSize, average_neighbours

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DropKV(Windowed):
    """Scores an entry by what its eviction alone would do to the outputs of the last `window_size` queries.

    If query `i` pays entry `j` the attention `p_ij` and its output is `o_i`, the output without it is off by
    `p_ij / (1 - p_ij) (o_i - v_j)`. The score is `sum_i (p_ij / (1 - p_ij + epsilon))^2 ||v_j - o_i||^2`, averaged over
    the GQA group and over `kernel_size` neighbours. The window itself is protected. Scores are squared changes of
    outputs, so heads can be compared by them (`ada_dropkv`).

    kvpress 0.5.5 has no such method; definition and defaults are those of the paper's authors in the request to add it.
    There all budgets keep the window at least; here a budget smaller than it keeps the latest entries. The paper's
    fused kernels are not here: the weights of one KV head's window are held at a time.
    """

    family: ClassVar[str] = "dropkv"

    window_size: WindowSize = 32
    kernel_size: KernelSize = 7
    epsilon: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1e-6

    def score(self, context: LayerContext, state: Tensor) -> Tensor:
        import torch

        from baklava.eviction.observed import weights_of_head

        by_head = []
        for head in range(context.keys.shape[1]):
            weights = weights_of_head(state, context, head)  # [B, group, W, S]
            values = context.values[:, None, head].to(weights.dtype)  # [B, 1, S, D]
            outputs = weights @ values  # [B, group, W, D]
            squares = outputs.square().sum(-1, keepdim=True) + values.square().sum(-1)[:, :, None]
            distances = (squares - 2 * outputs @ values.transpose(-1, -2)).clamp_(min=0)
            shifts = (weights / (1 - weights + self.epsilon)).square_().mul_(distances)
            by_head.append(shifts.sum(-2).mean(1))
        return average_neighbours(torch.stack(by_head, 1), self.kernel_size)  # [B, Hkv, S]
