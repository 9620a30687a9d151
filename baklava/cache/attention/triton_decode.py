"""Attention of a decoding step on CUDA, to a compressed context and to the tokens since it.

As in Flash-Decoding (https://crfm.stanford.edu/2023/10/12/flashdecoding.html) the entries are split between programs,
but along ragged storage: a program takes a stretch of it, of whichever KV cache, and no stretch is long, so that no
program is still busy when all others are done, however uneven the budgets. The queries of a KV cache, those of all
heads of its group, share one read of it. A second kernel merges the results of all stretches of a KV cache by
log-sum-exp, always in the same order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from baklava.cache.ragged import RaggedEntries

# Reckoned, and seen in what the compiler makes of it, but not yet measured on any GPU: blocks of so many bytes of keys
# and of values, two of each at a time, so that the next are on their way while one is in use.
BLOCK_BYTES = 2**14
PIPELINE_STAGES = 3
# Shared memory of a program, which limits how many of them a multiprocessor holds: these blocks, queries and weights.
SHARED_BYTES = 4 * BLOCK_BYTES + 2**13
# A longer stretch gains nothing; shorter ones share out better what is left when the others are done.
LONGEST = 1024
# Query rows of a program: a tensor core multiplies 16 at least, and registers must hold their outputs.
LEAST_ROWS, MOST_ROWS = 16, 64
# Results that are merged at a time.
BLOCK_RESULTS = 16

# Finite, so that a stretch in which a query may look at nothing has weights of 0 and not NaN.
LOWEST = tl.constexpr(-1e38)


def ragged_decode(
    query: Tensor,
    entries: RaggedEntries,
    tail_keys: Tensor,
    tail_values: Tensor,
    *,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    longest: int | None = None,
) -> Tensor:
    """What `baklava.cache.attention.ragged.ragged_attention` returns, for tensors of one 16- or 32-bit type on a GPU.

    Sums are kept in float32; a query that may look at nothing gets zeros. No program takes more than `longest` entries,
    by default as suits the device.
    """
    batch, n_heads, n_queries, dim = query.shape
    n_kv_heads, n_tail, value_dim = tail_values.shape[1:]
    group = n_heads // n_kv_heads
    n_caches, n_rows = batch * n_kv_heads, group * n_queries
    query, tail_keys, tail_values = (_dense_vectors(one) for one in (query, tail_keys, tail_values))

    blocks = block_sizes(n_rows, dim, value_dim, query.dtype)
    n_tiles = triton.cdiv(n_rows, blocks["BLOCK_ROWS"])
    if longest is None:
        longest = _longest(entries.layout.n_entries, n_tiles, blocks["BLOCK_ENTRIES"], query.device)
    items = entries.layout.work_items(longest)
    n_tail_items = triton.cdiv(n_tail, longest)
    n_results = len(items) + n_caches * n_tail_items

    results = query.new_empty(n_results, n_rows, value_dim, dtype=torch.float32)
    log_sums = query.new_empty(n_results, n_rows, dtype=torch.float32)
    output = query.new_empty(batch, n_queries, n_heads, value_dim, dtype=_arithmetic(query.dtype))
    # Triton launches on the current device, which is not that of every layer of a model spread over several.
    with torch.cuda.device_of(query):
        _attend[(n_results * n_tiles,)](
            query,
            *query.stride()[:3],
            entries.keys,
            entries.values,
            items.table,
            len(items),
            tail_keys,
            *tail_keys.stride()[:3],
            tail_values,
            *tail_values.stride()[:3],
            mask,
            *_mask_strides(mask),
            results,
            log_sums,
            float(scaling),
            softcap or 1.0,
            n_queries,
            n_tail,
            n_tail_items,
            n_tiles,
            longest,
            GROUP=group,
            KV_HEADS=n_kv_heads,
            MASKED=mask is not None,
            CAPPED=softcap is not None,
            **blocks,
            num_warps=4,
            num_stages=PIPELINE_STAGES,
        )
        _merge[(n_caches * n_rows,)](
            results,
            log_sums,
            items.bounds,
            len(items),
            n_tail_items,
            output,
            n_queries,
            GROUP=group,
            KV_HEADS=n_kv_heads,
            VALUE_DIM=value_dim,
            VALUE_DIM_PADDED=blocks["VALUE_DIM_PADDED"],
            BLOCK_RESULTS=BLOCK_RESULTS,
            num_warps=4,
        )
    return output.transpose(1, 2).to(query.dtype)


def _dense_vectors(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@lru_cache
def block_sizes(n_rows: int, dim: int, value_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """What the kernel is compiled for: head dimensions, and the query rows and entries that it multiplies at a time.

    Blocks have powers of two as sizes.
    """
    padded, value_padded = (max(16, triton.next_power_of_2(one)) for one in (dim, value_dim))
    n_vectors = max(16, BLOCK_BYTES // (max(padded, value_padded) * dtype.itemsize))
    products = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    return {
        "DIM": dim,
        "DIM_PADDED": padded,
        "VALUE_DIM": value_dim,
        "VALUE_DIM_PADDED": value_padded,
        "PRODUCTS": products[_arithmetic(dtype)],
        "BLOCK_ROWS": min(MOST_ROWS, n_vectors, max(LEAST_ROWS, triton.next_power_of_2(n_rows))),
        "BLOCK_ENTRIES": min(128, n_vectors),
    }


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    """What the kernels multiply and store: the tensors' own type, on a GPU.

    Triton's interpreter has no products of bfloat16, and cuts where the GPU rounds.
    """
    interpreted = not isinstance(_attend, triton.JITFunction)
    return torch.float32 if interpreted and dtype == torch.bfloat16 else dtype


def _mask_strides(mask: Tensor | None) -> tuple[int, int, int]:
    """Per batch row, query and key of a mask `[B or 1, 1, Q, M]`."""
    if mask is None:
        return 0, 0, 0
    return mask.stride(0) if mask.shape[0] > 1 else 0, mask.stride(2), mask.stride(3)


def _longest(n_entries: int, n_tiles: int, block_entries: int, device: torch.device) -> int:
    """Entries per program, a multiple of `block_entries`, so that all multiprocessors are done at about the same time.

    Each stretch is read once per tile of query rows. It depends on the context alone: the table of work items serves
    for all tokens that are decoded with it.
    """
    n_at_once = _programs_at_once(device)
    n_rounds = max(1, triton.cdiv(n_entries, n_at_once * LONGEST))
    fair = triton.cdiv(n_entries * n_tiles, n_at_once * n_rounds)
    return block_entries * max(1, triton.cdiv(fair, block_entries))


@lru_cache
def _programs_at_once(device: torch.device) -> int:
    if device.type != "cuda":
        return 8
    gpu = torch.cuda.get_device_properties(device)
    return gpu.multi_processor_count * max(1, gpu.shared_memory_per_multiprocessor // SHARED_BYTES)


@triton.jit(do_not_specialize=["n_items", "mask_b", "mask_q", "mask_m", "n_tail", "n_tail_items", "longest"])
def _attend(
    query: tl.tensor,  # [B, Hq, Q, DIM]
    query_b: tl.tensor,
    query_h: tl.tensor,
    query_q: tl.tensor,
    keys: tl.tensor,  # [N, DIM]
    values: tl.tensor,  # [N, VALUE_DIM]
    items: tl.tensor,  # [n_items, 4]
    n_items: tl.tensor,
    tail_keys: tl.tensor,  # [B, Hkv, M, DIM]
    key_b: tl.tensor,
    key_h: tl.tensor,
    key_m: tl.tensor,
    tail_values: tl.tensor,  # [B, Hkv, M, VALUE_DIM]
    value_b: tl.tensor,
    value_h: tl.tensor,
    value_m: tl.tensor,
    mask: tl.tensor,  # [B, 1, Q, M]
    mask_b: tl.tensor,
    mask_q: tl.tensor,
    mask_m: tl.tensor,
    results: tl.tensor,  # [n_results, R, VALUE_DIM]
    log_sums: tl.tensor,  # [n_results, R]
    scaling: tl.tensor,
    softcap: tl.tensor,
    n_queries: tl.tensor,
    n_tail: tl.tensor,
    n_tail_items: tl.tensor,
    n_tiles: tl.tensor,
    longest: tl.tensor,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_DIM_PADDED: tl.constexpr,
    MASKED: tl.constexpr,
    CAPPED: tl.constexpr,
    PRODUCTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr,
) -> None:
    """One tile of the query rows of a KV cache, over one stretch of its entries: the first `n_items` are in `items`.

    The others are of the tail, `n_tail_items` per KV cache. Row `g * Q + q` is query `q` of head `g` of the group.
    """
    item = tl.program_id(0) // n_tiles
    tile = tl.program_id(0) % n_tiles
    if item < n_items:
        start = tl.load(items + 4 * item).to(tl.int64)
        length = tl.load(items + 4 * item + 1)
        cache = tl.load(items + 4 * item + 2)
        place = tl.load(items + 4 * item + 3)
    else:
        cache = (item - n_items) // n_tail_items
        start = ((item - n_items) % n_tail_items * longest).to(tl.int64)
        length = tl.minimum(n_tail - start, longest).to(tl.int32)
        place = item
    batch = (cache // KV_HEADS).to(tl.int64)
    kv_head = (cache % KV_HEADS).to(tl.int64)

    row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    real = row < GROUP * n_queries
    nth = row % n_queries
    dim = tl.arange(0, DIM_PADDED)
    value_dim = tl.arange(0, VALUE_DIM_PADDED)
    entry = tl.arange(0, BLOCK_ENTRIES)
    head = kv_head * GROUP + row // n_queries
    rows = query + batch * query_b + head[:, None] * query_h + nth[:, None] * query_q + dim[None, :]
    q = tl.load(rows, mask=real[:, None] & (dim < DIM)[None, :], other=0.0).to(PRODUCTS)  # [R, DIM]

    weighted = tl.zeros([BLOCK_ROWS, VALUE_DIM_PADDED], tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    highest = tl.full([BLOCK_ROWS], LOWEST, tl.float32)
    if item < n_items:
        k_start = keys + start * DIM + dim[:, None]
        v_start = values + start * VALUE_DIM + value_dim[None, :]
        for first in range(0, length, BLOCK_ENTRIES):
            n = first + entry
            here = n < length
            k = tl.load(k_start + n[None, :] * DIM, mask=here[None, :] & (dim < DIM)[:, None], other=0.0)
            v = tl.load(
                v_start + n[:, None] * VALUE_DIM, mask=here[:, None] & (value_dim < VALUE_DIM)[None, :], other=0.0
            )
            weighted, total, highest = _fold(
                q, k, v, here[None, :], weighted, total, highest, scaling, softcap, CAPPED, PRODUCTS
            )
    else:
        k_start = tail_keys + batch * key_b + kv_head * key_h + start * key_m + dim[:, None]
        v_start = tail_values + batch * value_b + kv_head * value_h + start * value_m + value_dim[None, :]
        # Not pipelined: the tail is short, and blocks on their way would take as much shared memory again.
        for first in tl.range(0, length, BLOCK_ENTRIES, num_stages=1):
            n = first + entry
            here = n < length
            k = tl.load(k_start + n[None, :] * key_m, mask=here[None, :] & (dim < DIM)[:, None], other=0.0)
            v = tl.load(
                v_start + n[:, None] * value_m, mask=here[:, None] & (value_dim < VALUE_DIM)[None, :], other=0.0
            )
            if MASKED:
                seen = mask + batch * mask_b + nth[:, None] * mask_q + (start + n)[None, :] * mask_m
                visible = tl.load(seen, mask=real[:, None] & here[None, :], other=0) != 0
            else:
                visible = here[None, :] & ((start + n)[None, :] <= n_tail - n_queries + nth[:, None])
            weighted, total, highest = _fold(
                q, k, v, visible, weighted, total, highest, scaling, softcap, CAPPED, PRODUCTS
            )

    at = place.to(tl.int64) * (GROUP * n_queries) + row
    some = tl.where(total > 0.0, total, 1.0)
    to = results + at[:, None] * VALUE_DIM + value_dim[None, :]
    tl.store(to, weighted / some[:, None], mask=real[:, None] & (value_dim < VALUE_DIM)[None, :])
    tl.store(log_sums + at, tl.where(total > 0.0, highest + tl.log(some), float("-inf")), mask=real)


@triton.jit
def _fold(
    q: tl.tensor,  # [R, DIM]
    k: tl.tensor,  # [DIM, n]
    v: tl.tensor,  # [n, VALUE_DIM]
    visible: tl.tensor,  # [R or 1, n]
    weighted: tl.tensor,  # [R, VALUE_DIM]
    total: tl.tensor,  # [R]
    highest: tl.tensor,  # [R]
    scaling: tl.tensor,
    softcap: tl.tensor,
    CAPPED: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tuple:
    """Softmax attention so far, with `n` more entries: weighted values, sum of weights, highest score."""
    scores = tl.dot(q, k.to(PRODUCTS), input_precision="ieee") * scaling
    if CAPPED:
        scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 / softcap * scores) + 1.0))  # tanh
    scores = tl.where(visible, scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp(scores - higher[:, None])
    decay = tl.exp(highest - higher)
    total = total * decay + tl.sum(weights, 1)
    weighted = tl.dot(weights.to(PRODUCTS), v.to(PRODUCTS), weighted * decay[:, None], input_precision="ieee")
    return weighted, total, higher


@triton.jit(do_not_specialize=["n_items", "n_tail_items"])
def _merge(
    results: tl.tensor,  # [n_results, R, VALUE_DIM]
    log_sums: tl.tensor,  # [n_results, R]
    bounds: tl.tensor,  # [C + 1]
    n_items: tl.tensor,
    n_tail_items: tl.tensor,
    output: tl.tensor,  # [B, Q, Hq, VALUE_DIM]
    n_queries: tl.tensor,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_DIM_PADDED: tl.constexpr,
    BLOCK_RESULTS: tl.constexpr,
) -> None:
    """One query row: the results of all stretches of its KV cache, weighted by their sums."""
    n_rows = GROUP * n_queries
    cache = tl.program_id(0) // n_rows
    row = tl.program_id(0) % n_rows
    begin = tl.load(bounds + cache)
    n_context = tl.load(bounds + cache + 1) - begin
    n_results = n_context + n_tail_items
    nth = tl.arange(0, BLOCK_RESULTS)
    dim = tl.arange(0, VALUE_DIM_PADDED)

    weighted = tl.zeros([VALUE_DIM_PADDED], tl.float32)
    total = tl.zeros([1], tl.float32)
    highest = tl.full([1], LOWEST, tl.float32)
    for first in range(0, n_results, BLOCK_RESULTS):
        i = first + nth
        here = i < n_results
        place = tl.where(i < n_context, begin + i, n_items + cache * n_tail_items + i - n_context)
        at = place.to(tl.int64) * n_rows + row
        log_sum = tl.load(log_sums + at, mask=here, other=float("-inf"))
        from_ = results + at[:, None] * VALUE_DIM + dim[None, :]
        result = tl.load(from_, mask=here[:, None] & (dim < VALUE_DIM)[None, :], other=0.0)
        higher = tl.maximum(highest, tl.max(log_sum, 0))
        weights = tl.exp(log_sum - higher)
        decay = tl.exp(highest - higher)
        total = total * decay + tl.sum(weights, 0)
        weighted = weighted * decay + tl.sum(weights[:, None] * result, 0)
        highest = higher

    batch = cache // KV_HEADS
    head = cache % KV_HEADS * GROUP + row // n_queries
    at = (batch * n_queries + row % n_queries).to(tl.int64) * (KV_HEADS * GROUP) + head
    mean = weighted / tl.where(total > 0.0, total, 1.0)
    tl.store(output + at * VALUE_DIM + dim, mean.to(output.dtype.element_ty), mask=dim < VALUE_DIM)
