"""Attention, named "recording", that keeps what each layer gives it: for policies, without a cache of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from baklava.decoder.attention_path import AttentionPath


class Recorder:
    """Plain causal attention that keeps what each layer gave it."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor, Tensor, float]] = []

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        self.layers.append((query, key, value, scaling))
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2), None


RECORDER = Recorder()
AttentionInterface.register("recording", RECORDER)
AttentionMaskInterface.register("recording", lambda **_: None)


def path_of(model: PreTrainedModel, index: int) -> AttentionPath:
    layer = model.model.layers[index]
    projection = layer.self_attn.o_proj
    return AttentionPath(layer, layer.self_attn, projection, torch.zeros(1, 1, projection.in_features))


def positions_of(some: Tensor, keys: Tensor) -> list[set[int]]:
    """Where the keys `[1, Hkv, n, D]` that kvpress left are among all `[1, Hkv, S, D]`."""
    same = (some[0, :, :, None] == keys[0, :, None]).all(-1)  # [Hkv, n, S]
    assert bool((same.sum(-1) == 1).all())
    return [set(row) for row in same.int().argmax(-1).tolist()]
