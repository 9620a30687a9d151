"""How others read KV caches of unequal lengths in a decoding step: with a mask, padded, as sequences, by blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa


def candidates(
    query: Tensor, keys: Tensor, values: Tensor, kept: Tensor, flex: bool
) -> dict[str, Callable[[], Tensor]]:
    """Attend from `[B, Hq, 1, D]` to those entries of `[B, Hkv, T, D]` that are `kept` `[B * Hkv, T]`.

    The query heads of a group are rows of their KV head throughout, which is fastest. The kept entries are the last.
    """
    batch, n_kv_heads, length, dim = keys.shape
    packed = query.view(batch, n_kv_heads, -1, dim)
    mask = kept.view(batch, n_kv_heads, 1, length)
    longest = int(kept.sum(-1).max())
    padded = [tensor[:, :, -longest:].contiguous() for tensor in (keys, values)]
    padded_mask = mask[..., -longest:].contiguous()
    found = {
        "masked sdpa": lambda: sdpa(packed, keys, values, attn_mask=mask),
        "padded sdpa": lambda: sdpa(packed, *padded, attn_mask=padded_mask),
    }
    if query.is_cuda:
        found["varlen_attn"] = _varlen(packed, keys, values, kept)
        if flex:
            found["flex_attention"] = _flex(packed, keys, values, mask)
    return found


def _varlen(packed: Tensor, keys: Tensor, values: Tensor, kept: Tensor) -> Callable[[], Tensor]:
    """PyTorch's FlashAttention for sequences of unequal lengths, of which every KV cache is one."""
    from torch.nn.attention.varlen import varlen_attn

    counts, group = kept.sum(-1), packed.shape[2]
    entries = [tensor.flatten(0, 1)[kept][:, None] for tensor in (keys, values)]  # [N, 1, D]
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    query_starts = torch.arange(len(counts) + 1, device=kept.device, dtype=torch.int32) * group
    rows, longest = packed.flatten(0, 2)[:, None], int(counts.max())
    return lambda: varlen_attn(rows, *entries, query_starts, starts, group, longest)


def _flex(packed: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    """FlexAttention over the full cache, which skips blocks of 128 entries of which none is kept."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    batch, n_kv_heads, group, _ = packed.shape
    first = mask.shape[-1] - mask[:, :, 0].sum(-1)  # [B, Hkv]
    blocks = create_block_mask(
        lambda row, head, _, entry: entry >= first[row, head],
        batch,
        n_kv_heads,
        group,
        mask.shape[-1],
        device=str(mask.device),
    )
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(packed, keys, values, block_mask=blocks)
