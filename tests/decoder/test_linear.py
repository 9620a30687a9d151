"""Weights of linear modules, however they keep them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quantised_linears import KINDS, Scaled8Bit
from torch import nn

from baklava.decoder import linear as module_under_test
from baklava.decoder.linear import is_linear, weight_of


def plain(n_in: int = 24, n_out: int = 16, *, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(n_in)
    made = nn.Linear(n_in, n_out, bias=bias, dtype=dtype)
    if bias:
        nn.init.normal_(made.bias)
    return made


def example(n_in: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(1, 5, n_in, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("bias", [False, True])
def test_weights_are_the_dequantised_ones(kind: type, bias: bool) -> None:
    linear = kind(plain(bias=bias))
    weight = weight_of(linear, example(24))
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, linear.dequantised().float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_plain_numbers_are_read_exactly(dtype: torch.dtype) -> None:
    linear = plain(dtype=dtype)
    assert torch.equal(weight_of(linear, example(24, dtype)), linear.weight.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.25, 1.0, 300.0])
def test_half_precision_costs_no_more_than_its_rounding(dtype: torch.dtype, scale: float) -> None:
    linear = Scaled8Bit(plain(bias=False, dtype=dtype))
    weight = weight_of(linear, scale * example(24, dtype))
    torch.testing.assert_close(weight, linear.dequantised().float(), rtol=2 * torch.finfo(dtype).eps, atol=0.0)


@given(n_in=st.integers(1, 12), n_out=st.integers(1, 9), block=st.integers(1, 13))
def test_weights_do_not_depend_on_the_size_of_blocks(n_in: int, n_out: int, block: int) -> None:
    linear = Scaled8Bit(plain(n_in, n_out))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_under_test, "BLOCK", block)
        torch.testing.assert_close(weight_of(linear, example(n_in)), linear.dequantised(), rtol=1e-5, atol=1e-6)


def test_no_more_than_a_block_of_unit_inputs_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_under_test, "BLOCK", 7)
    linear = Scaled8Bit(plain())
    seen = []
    forward = linear.forward
    monkeypatch.setattr(linear, "forward", lambda values: seen.append(values.shape[1]) or forward(values))
    weight_of(linear, example(24))
    assert max(seen) == 7


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_quantised_modules_are_linear_maps(kind: type) -> None:
    linear = kind(plain())
    assert is_linear(linear, example(24), linear(example(24)))


@pytest.mark.parametrize("norm", [nn.LayerNorm(24), nn.RMSNorm(24), nn.Sequential(nn.Linear(24, 24), nn.Tanh())])
def test_norms_and_activations_are_none(norm: nn.Module) -> None:
    values = 3.0 * example(24)
    assert not is_linear(norm, values, norm(values))
