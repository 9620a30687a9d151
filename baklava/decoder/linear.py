"""Recovers the weights of a linear map, whatever module applies it and however it stores them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

BLOCK = 512  # unit inputs of one call
PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def weight_of(linear: nn.Module, example: Tensor) -> Tensor:
    """Return the weights `[out, in]`, in float32, of a module that maps `[..., in]` to `[..., out]`, bias or not.

    Plain floating-point weights are read. For others (packed bits, integers with scales, adapters beside the weights)
    the module is called on unit inputs: `W` is its output minus its output for zeros. `example` is an input as the
    model gives it: it sets the dtype of the units, and they are as large as its largest entry, so that no scale made
    for real inputs clips them.
    """
    if type(linear) in (nn.Linear, Conv1D) and isinstance(linear.weight, Tensor) and _is_plain(linear.weight):
        weight = linear.weight.float()
        return weight if type(linear) is nn.Linear else weight.T  # Conv1D, GPT-2's, keeps `[in, out]`
    n_inputs, largest = example.shape[-1], float(example.abs().amax())
    unit = 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 1.0
    with torch.inference_mode():
        # `forward` skips the hooks, which would take this for part of the model's pass.
        zero = linear.forward(example.new_zeros(1, 1, n_inputs))[0].float()
        columns = []
        for start in range(0, n_inputs, BLOCK):
            index = torch.arange(min(BLOCK, n_inputs - start), device=example.device)
            units = example.new_zeros(1, len(index), n_inputs)
            units[0, index, start + index] = unit
            columns.append((linear.forward(units)[0].float() - zero) / unit)  # [block, out]
    return torch.cat(columns).T


def is_linear(module: nn.Module, example: Tensor, output: Tensor) -> bool:
    """Whether a module that maps `example` to `output` uses weights and a bias alone; a norm does not.

    This is tested on values, not types: twice the input of a linear map gives twice the output, apart from the bias.
    The margin allows for integer arithmetic; a norm is off by half.
    """
    bias = module.forward(torch.zeros_like(example)).float()
    twice, once = module.forward(2 * example).float() - bias, output.float() - bias
    return bool((twice - 2 * once).norm() <= 0.1 * twice.norm())


def _is_plain(weight: Tensor) -> bool:
    """Whether this is a loaded floating-point parameter, and no tensor subclass of a quantiser."""
    return type(weight) is nn.Parameter and weight.dtype in PLAIN and not weight.is_meta
