"""How the attention of a layer reaches the residual stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from baklava.decoder.linear import weight_of

Step = nn.Module | float | Tensor  # a norm or the like, or a factor


@dataclass(frozen=True, eq=False)
class AttentionPath:
    """The way of one layer's attention into the residual stream.

    The stream enters `layer`. `attention` calls the attention function; `projection` makes one vector of the outputs
    of all heads; `steps` (a norm after the attention, a multiplier; mostly nothing) is what happens to it before it is
    added. `example` is an input of the projection.
    """

    layer: nn.Module
    attention: nn.Module
    projection: nn.Module
    example: Tensor
    steps: tuple[Step, ...] = ()

    def output_weight(self, n_heads: int) -> Tensor:
        """Each query head's part of the output projection, `[Hq, hidden, D]` in float32."""
        weight = weight_of(self.projection, self.example)  # [hidden, Hq * D]
        return weight.view(weight.shape[0], n_heads, -1).transpose(0, 1)

    def added(self, projected: Tensor) -> Tensor:
        """What is added to the residual stream where the projection gives `[..., hidden]`, in that arithmetic."""
        for step in self.steps:
            projected = _taken(step, projected)
        return projected

    @property
    def is_linear(self) -> bool:
        """Whether what is added is the projection's output times factors, so that changes of it may be sent alone."""
        return not any(isinstance(step, nn.Module) for step in self.steps)


def hidden_states(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The residual stream `[B, T, hidden]` among what a layer is called with."""
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def _taken(step: Step, values: Tensor) -> Tensor:
    if not isinstance(step, nn.Module):
        return values * step
    tensors = {**dict(step.named_parameters()), **dict(step.named_buffers())}
    exact = {
        name: one.to(torch.promote_types(one.dtype, values.dtype))
        for name, one in tensors.items()
        if one.is_floating_point()
    }
    return functional_call(step, exact, (values,))
