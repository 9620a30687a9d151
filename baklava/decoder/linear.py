"""The weights of a linear map, whatever module applies it and however that keeps them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

BLOCK = 512  # unit inputs at once
PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def weight_of(linear: nn.Module, example: Tensor) -> Tensor:
    """Weights `[out, in]`, in float32, of a module that maps `[..., in]` to `[..., out]` and may add a bias.

    Plain numbers are read. Where the module keeps others (packed bits, integers with scales, adapters beside the
    weights), it is called on unit inputs: `W` is what it makes of them, less what it makes of zeros. `example` is an
    input as the model gives it: its kind of number is what the module computes with, and the unit is as large as its
    largest entry, so that no scale made for real inputs clips it.
    """
    if type(linear) in (nn.Linear, Conv1D) and isinstance(linear.weight, Tensor) and _is_plain(linear.weight):
        weight = linear.weight.float()
        return weight if type(linear) is nn.Linear else weight.T  # Conv1D, GPT-2's, keeps `[in, out]`
    n_inputs, largest = example.shape[-1], float(example.abs().amax())
    unit = 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 1.0
    with torch.inference_mode():
        # `forward`, so that no hook takes this for a part of the model's pass.
        zero = linear.forward(example.new_zeros(1, 1, n_inputs))[0].float()
        columns = []
        for start in range(0, n_inputs, BLOCK):
            place = torch.arange(min(BLOCK, n_inputs - start), device=example.device)
            units = example.new_zeros(1, len(place), n_inputs)
            units[0, place, start + place] = unit
            columns.append((linear.forward(units)[0].float() - zero) / unit)  # [block, out]
    return torch.cat(columns).T


def is_linear(module: nn.Module, example: Tensor, output: Tensor) -> bool:
    """Whether a module that maps `example` to `output` does so by weights and a bias alone; a norm does not.

    Tried, not looked up: for a linear map twice the input is twice the output, the bias left out. The margin is for
    integer arithmetic; a norm is off by half.
    """
    bias = module.forward(torch.zeros_like(example)).float()
    twice, once = module.forward(2 * example).float() - bias, output.float() - bias
    return bool((twice - 2 * once).norm() <= 0.1 * twice.norm())


def _is_plain(weight: Tensor) -> bool:
    """A parameter of floating-point numbers that are at hand, not a tensor subclass of some quantiser."""
    return type(weight) is nn.Parameter and weight.dtype in PLAIN and not weight.is_meta
