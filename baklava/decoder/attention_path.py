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
    """The path of one layer's attention into the residual stream.

    The stream enters `layer`. `attention` calls the attention function; `projection` maps the outputs of all heads to
    one vector; `steps` (a norm after the attention, a multiplier; usually none) are applied before it is added.
    `example` is an input of the projection.
    """

    layer: nn.Module
    attention: nn.Module
    projection: nn.Module
    example: Tensor
    steps: tuple[Step, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionPath:
        """Paths belong to a model: copies of what holds them lead through the same one."""
        return self

    def output_weight(self, n_heads: int) -> Tensor:
        """Split the output projection by query head, `[Hq, hidden, D]` in float32."""
        weight = weight_of(self.projection, self.example)  # [hidden, Hq * D]
        return weight.view(weight.shape[0], n_heads, -1).transpose(0, 1)

    def added(self, projected: Tensor) -> Tensor:
        """Compute what is added to the residual stream from the projection's output `[..., hidden]`, in its dtype."""
        for step in self.steps:
            projected = _apply(step, projected)
        return projected

    @property
    def is_linear(self) -> bool:
        """Whether only factors follow the projection, so that a change of its output can be mapped on its own."""
        return not any(isinstance(step, nn.Module) for step in self.steps)


def hidden_states(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the residual stream `[B, T, hidden]` from the arguments of a layer."""
    stream: Tensor = args[0] if args else kwargs["hidden_states"]
    return stream


def _apply(step: Step, values: Tensor) -> Tensor:
    if not isinstance(step, nn.Module):
        return values * step
    tensors = {**dict(step.named_parameters()), **dict(step.named_buffers())}
    exact = {
        name: tensor.to(torch.promote_types(tensor.dtype, values.dtype))
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    return functional_call(step, exact, (values,))
