"""Attention as in Qwen2: a few dimensions carry a large constant, so that scores are in the thousands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from baklava.cache.attention.backend import HALVES
from baklava.cache.ragged_storage import RaggedEntries

every_half = tuple(HALVES)
BIAS = 90.0  # four dimensions of it: 32,400 before scaling, where bfloat16 has steps of 256
VOCABULARY = 60


def large_constants(n_heads: int, dim: int) -> Tensor:
    """A bias `[n_heads * dim]` of those dimensions that a rotation hardly turns."""
    bias = torch.zeros(n_heads, dim)
    bias[:, [dim // 2 - 2, dim // 2 - 1, dim - 2, dim - 1]] = BIAS
    return bias.flatten()


def large_tensors(*shape: int, dtype: torch.dtype, seed: int, by: float = BIAS) -> tuple[Tensor, Tensor]:
    """Two normal tensors `[..., D]` with a large constant in the last four dimensions: of queries, keys."""
    random = torch.Generator().manual_seed(seed)
    both = torch.randn(2, *shape, generator=random)
    both[..., -4:] += by
    return both[0].to(dtype), both[1].to(dtype)


@dataclass(frozen=True)
class LargeStep:
    """One token of two rows with two KV heads each, over 1,200 entries and a suffix of 9."""

    query: Tensor  # [B, Hq, 1, D]
    key: Tensor  # [B, Hkv, T, D]
    value: Tensor
    n_suffix: int = 9

    @classmethod
    def of(cls, dim: int, group: int, dtype: torch.dtype, device: str) -> LargeStep:
        query, _ = large_tensors(2, 2 * group, 1, dim, dtype=dtype, seed=dim)
        _, key = large_tensors(2, 2, 1200 + cls.n_suffix, dim, dtype=dtype, seed=dim + 1)
        value = torch.randn(key.shape, generator=torch.Generator().manual_seed(group)).to(dtype)
        return cls(query.to(device), key.to(device), value.to(device))

    @property
    def entries(self) -> RaggedEntries:
        context = [one[:, :, : -self.n_suffix] for one in (self.key, self.value)]
        kept = torch.ones(4, context[0].shape[2], dtype=torch.bool, device=self.key.device)
        return RaggedEntries.gather(*context, torch.arange(2, device=self.key.device), kept)

    @property
    def suffix(self) -> tuple[Tensor, Tensor]:
        return self.key[:, :, -self.n_suffix :], self.value[:, :, -self.n_suffix :]

    def fused(self, dtype: torch.dtype | None = None) -> Tensor:
        """PyTorch's attention, in the tensors' own precision or another."""
        group = self.query.shape[1] // self.key.shape[1]
        heads = [self.query, self.key.repeat_interleave(group, 1), self.value.repeat_interleave(group, 1)]
        return scaled_dot_product_attention(*(one.to(dtype or one.dtype) for one in heads))

    def error(self, output: Tensor) -> float:
        """Mean distance from float64."""
        return (output.double() - self.fused(torch.float64)).abs().mean().item()


def qwen2(
    dim: int, group: int, dtype: torch.dtype, window: int | None = None
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A random model with one KV head per layer in half precision, and one of the same weights in float32.

    One layer; with `window` a second one before it, which has a sliding window.
    """
    windowed = {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1 if window is None else 2,
        num_attention_heads=group,
        num_key_value_heads=1,
        head_dim=dim,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        **({"use_sliding_window": False} if window is None else {**windowed, "sliding_window": window}),
    )
    half = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for layer in half.model.layers:
            layer.self_attn.q_proj.bias.copy_(large_constants(group, dim))
            layer.self_attn.k_proj.bias.copy_(large_constants(1, dim))
    half = half.to(dtype)
    exact = Qwen2ForCausalLM(config).eval()
    exact.load_state_dict(half.state_dict())
    return half, exact


def distance(logits: Tensor, reference: Tensor) -> float:
    """Total variation between next-token distributions `[..., vocabulary]`, the mean."""
    return (logits.float().softmax(-1) - reference.float().softmax(-1)).abs().sum(-1).mean().item() / 2
