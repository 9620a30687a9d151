"""The attention that trains on a CPU is plain causal attention, gradients included."""

import pytest
import torch

from baklava.training.attention import blockwise_attention


@pytest.mark.parametrize("length", [1, 63, 64, 65, 256, 300])
def test_equals_causal_attention_and_its_gradients(length: int) -> None:
    tensors = [torch.randn(3, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weights = torch.randn(3, length, 8, dtype=torch.float64)
    output = blockwise_attention(*tensors, scaling=0.4)
    gradients = torch.autograd.grad((output * weights).sum(), tensors)
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True, scale=0.4)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad((expected * weights).sum(), tensors))
