"""Stand-ins for linear modules that do not keep their weights as plain numbers; each knows its own, dequantised."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Scaled8Bit(nn.Module):
    """Integers and a scale per output row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("weight", (weight / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def dequantised(self) -> Tensor:
        return self.weight.to(self.scale.dtype) * self.scale

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.linear(values, self.dequantised(), self.bias)


class Packed4Bit(nn.Module):
    """Two weights a byte, all in one column, as bitsandbytes keeps them: the weight's shape tells nothing."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.shape, self.scale, self.bias = weight.shape, float(weight.abs().amax() / 7), linear.bias
        levels = (weight / self.scale).round().to(torch.int16) + 8
        self.weight = nn.Parameter(
            (levels.flatten()[::2] * 16 + levels.flatten()[1::2]).to(torch.uint8)[:, None], False
        )

    def dequantised(self) -> Tensor:
        levels = torch.stack([self.weight[:, 0] // 16, self.weight[:, 0] % 16], 1).to(torch.int16) - 8
        return levels.view(self.shape).double() * self.scale

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.linear(values, self.dequantised().to(values.dtype), self.bias)


class WeightOnly(nn.Module):
    """Columns in groups with scales of their own, and no attribute `weight`, as GPTQ and AWQ keep them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        groups = linear.weight.detach().unflatten(1, (-1, 4))
        self.register_buffer("scales", groups.abs().amax(-1, keepdim=True) / 7)
        self.register_buffer("qweight", (groups / self.scales).round().to(torch.int32))
        self.bias = linear.bias

    def dequantised(self) -> Tensor:
        return (self.qweight * self.scales).flatten(1)

    def forward(self, values: Tensor) -> Tensor:
        result = values @ self.dequantised().T
        return result if self.bias is None else result.add_(self.bias)


class QuantisedInputs(Scaled8Bit):
    """Rounds its inputs to 8 bits, too, with a scale per token. A subclass of nothing that says so."""

    def forward(self, values: Tensor) -> Tensor:
        scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
        return super().forward((values / scale).round() * scale)


class Adapted(nn.Module):
    """A linear module with a low-rank adapter beside it, as LoRA makes it: `weight` is not all of it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.base_layer = linear
        self.down = nn.Linear(linear.in_features, 2, bias=False, dtype=linear.weight.dtype)
        self.up = nn.Linear(2, linear.out_features, bias=False, dtype=linear.weight.dtype)
        self.weight = linear.weight

    def dequantised(self) -> Tensor:
        return self.base_layer.weight.detach() + 2.0 * (self.up.weight @ self.down.weight).detach()

    def forward(self, values: Tensor) -> Tensor:
        return self.base_layer(values) + self.up(self.down(values)) * 2.0


class OtherLinear(nn.Linear):
    """A subclass whose numbers mean something else, as quantisers make them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, dtype=linear.weight.dtype)
        self.weight, self.bias = nn.Parameter(linear.weight.detach() * 4.0), linear.bias

    def dequantised(self) -> Tensor:
        return self.weight.detach() / 4.0

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.linear(values, self.weight / 4.0, self.bias)


class Transposed(Conv1D):
    """GPT-2's linear module keeps `[in, out]`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.out_features, linear.in_features)
        self.weight = nn.Parameter(linear.weight.detach().T.contiguous())
        self.bias = nn.Parameter(
            linear.bias.detach() if linear.bias is not None else torch.zeros(self.nf).to(linear.weight)
        )

    def dequantised(self) -> Tensor:
        return self.weight.detach().T


KINDS = (Scaled8Bit, Packed4Bit, WeightOnly, QuantisedInputs, Adapted, OtherLinear, Transposed)
