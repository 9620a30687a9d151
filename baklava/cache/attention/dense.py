"""The `baklava` attention: dense over the prompt, ragged over a budgeted cache.

Importing this module registers it with transformers' attention and mask registries; a model uses it after
`model.set_attn_implementation("baklava")`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from baklava.cache.attention.precision import at_least_float32
from baklava.decoder.releases import sdpa_mask, takes_positions
from baklava.errors import UserError

NAME = "baklava"

# Scores `[B, Hq, q, T]` that are held at a time where they are soft-capped, which no fused kernel can do.
MAX_SCORES = 2**25


class Observer(Protocol):
    """Is called with the tensors of a layer's attention: query `[B, Hq, T, D]`, key, value `[B, Hkv, T, D]`, output."""

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        *,
        scaling: float,
        softcap: float | None,
    ) -> None: ...


# What the attention of some models does besides keys, queries and a mask, by the name of its argument.
UNSUPPORTED = {
    "s_aux": "learnt attention sinks",
    "sinks": "learnt attention sinks",
    "position_bias": "position biases",
    "indices": "attention to entries that an indexer picks",
    "block_indices": "attention to entries that an indexer picks",
}


class Attends(Protocol):
    """A cache layer that computes its own attention; it has seen `seen` tokens."""

    seen: int

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """Compute the output `[B, Hq, Q, D]` of the latest tokens; key, value and mask are as the model passed them."""
        ...


def attach(tensor: Tensor, layer: Attends) -> Tensor:
    """Attach the cache layer to its keys or values: the only way to hand it to the attention function."""
    carrier = tensor.view(tensor.shape)
    carrier.baklava_layer = layer  # type: ignore[attr-defined]
    return carrier


def check_attention(config: PreTrainedConfig) -> None:
    """Raises `UserError` for a model that does not use the attention `baklava`."""
    if config._attn_implementation != NAME:
        raise UserError(
            f"a BudgetedCache needs the attention {NAME!r}, the model has {config._attn_implementation!r}; "
            f'call model.set_attn_implementation("{NAME}") first'
        )


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention `[B, Hq, Q, D]` of the last `Q` of `T` positions, without repeating KV heads.

    `mask` `[B, 1, Q, T]` is true where a query may look; without a mask, it sees everything up to itself.
    """
    batch, n_heads, n_queries, _ = query.shape
    n_kv_heads, n_keys = key.shape[1:3]
    if softcap is not None:
        return _softcapped_attention(query, key, value, scaling=scaling, mask=mask, softcap=softcap)
    if mask is None and 1 < n_queries < n_keys:
        position = torch.arange(n_keys, device=query.device)
        mask = position <= position[n_keys - n_queries :, None]
    if n_queries == 1 and n_heads != n_kv_heads:  # pack a group's heads as queries: their KV head is read once
        packed = query.reshape(batch, n_kv_heads, -1, query.shape[-1])
        output = nn.functional.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
        return output.reshape(batch, n_heads, 1, -1)
    return nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and n_queries > 1,
        scale=scaling,
        enable_gqa=n_heads != n_kv_heads,
    )


def _softcapped_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scaling: float, mask: Tensor | None, softcap: float
) -> Tensor:
    """Attention with bounded scores (Gemma 2, arXiv 2408.00118), in blocks of queries, in float32 at least."""
    batch, n_heads, n_queries, _ = query.shape
    n_kv_heads, n_keys = key.shape[1:3]
    grouped = at_least_float32(query).unflatten(1, (n_kv_heads, -1)) * scaling  # [B, Hkv, group, Q, D]
    keys, values = at_least_float32(key)[:, :, None].transpose(-1, -2), at_least_float32(value)[:, :, None]
    step = max(1, MAX_SCORES // (batch * n_heads * n_keys))
    position = torch.arange(n_keys, device=query.device)
    blocks = []
    for start in range(0, n_queries, step):
        scores = soft_cap(torch.matmul(grouped[..., start : start + step, :], keys), softcap)  # [.., q, T]
        if mask is None:
            visible = position <= position[n_keys - n_queries :][start : start + step, None]
        else:
            visible = mask[..., start : start + step, :].unsqueeze(-4)
        # Finite, so that a padding query, which sees nothing, gives an arbitrary output and not NaN.
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        blocks.append(torch.matmul(scores.softmax(-1), values))
    return torch.cat(blocks, -2).flatten(1, 2).to(query.dtype)


def soft_cap(scores: Tensor, softcap: float) -> Tensor:
    return scores.div(softcap).tanh_() * softcap  # not in place: a gradient needs the tanh


@torch.compiler.disable  # a compiled function would lose the layer attached to the keys
def baklava_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    is_causal: bool | None = None,
    observer: Observer | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function for transformers' registry.

    An `observer` passed to the model's forward is called with the tensors of every layer. A module that is not causal,
    as in vision and audio towers, attends as with transformers' `sdpa`.
    """
    if dropout:
        raise UserError("the baklava attention is for inference and knows no dropout; call model.eval()")
    layer: Attends | None = getattr(key, "baklava_layer", None)
    if getattr(value, "baklava_layer", None) is not layer:
        raise UserError("the model changes keys or values between its cache and its attention; it is not supported")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if layer is None and not causal:  # a vision or audio tower
        return _attend_both_ways(module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, **kwargs)
    _check_supported(layer, kwargs, causal=causal)
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if layer is None:
        output = dense_attention(query, key, value, scaling=scaling, mask=attention_mask, softcap=softcap)
    else:
        output = layer.attend(query, key, value, attention_mask, scaling=scaling, softcap=softcap)
    if observer is not None:
        observer(module, query, key, value, output, scaling=scaling, softcap=softcap)
    return output.transpose(1, 2).contiguous(), None  # [B, Q, Hq, D]


def _attend_both_ways(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None,
    softcap: float | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    for name in ("s_aux", "sinks"):  # sdpa would ignore these
        if kwargs.get(name) is not None:
            raise UserError(f"the baklava attention does not support {UNSUPPORTED[name]}")
    return sdpa_attention_forward(
        module, query, key, value, mask, scaling=scaling, softcap=softcap, is_causal=False, **kwargs
    )


def _check_supported(layer: Attends | None, arguments: dict[str, Any], *, causal: bool) -> None:
    """Raises `UserError` for attention that needs more than keys, queries and a causal mask."""
    for name, feature in UNSUPPORTED.items():
        if arguments.get(name) is not None:
            raise UserError(f"the baklava attention does not support models with {feature}")
    if layer is None:
        return
    if not causal:
        raise UserError("the attention of the model looks ahead; BaKlaVa needs a causal decoder")
    window = arguments.get("sliding_window")
    if window is not None and layer.seen > window:
        raise UserError(
            f"{layer.seen} tokens are more than the sliding window of {window} tokens of a layer whose config says "
            "that it sees all of them; give the model shorter texts"
        )


@takes_positions
def baklava_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> Tensor | None:
    """Make the mask of visible positions `[B, 1, Q, T]`; None without padding and windows."""
    if attention_mask is not None and attention_mask.shape[1] < q_offset + q_length:
        raise UserError(
            f"the attention mask shows {attention_mask.shape[1]} positions, and {q_offset + q_length} are read with "
            "these tokens; pass the mask of all of them"
        )
    padded = attention_mask is not None and not bool(attention_mask.all())
    causal_only = allow_is_causal_skip and not padded and q_offset + q_length == kv_length
    if causal_only and (local_size is None or kv_length <= local_size):
        return None
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=causal_only,
        **kwargs,
    )


AttentionInterface.register(NAME, baklava_attention)
AttentionMaskInterface.register(NAME, baklava_mask)
