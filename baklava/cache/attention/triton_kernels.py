"""The Triton kernels of `triton_decode`: one attends to stretches of storage, the other merges their results.

Shapes: `B` batch rows, `Q` new tokens, `N` entries of the context, `M` tokens of the suffix, `C = B * Hkv` KV caches,
`R = GROUP * Q` query rows of each, where row `g * Q + q` is query `q` of head `g` of the group.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Finite, so that the weights of a query that sees nothing in a stretch are 0 and not NaN.
LOWEST = tl.constexpr(-1e38)


@triton.jit(do_not_specialize=["n_items", "mask_b", "mask_q", "mask_m", "n_suffix", "n_suffix_items", "longest"])
def attend_stretches(
    query: tl.tensor,  # [B, Hq, Q, DIM]
    query_b: tl.tensor,
    query_h: tl.tensor,
    query_q: tl.tensor,
    keys: tl.tensor,  # [N, DIM]
    values: tl.tensor,  # [N, VALUE_DIM]
    items: tl.tensor,  # [n_items, 4]
    n_items: tl.tensor,
    suffix_keys: tl.tensor,  # [B, Hkv, M, DIM]
    key_b: tl.tensor,
    key_h: tl.tensor,
    key_m: tl.tensor,
    suffix_values: tl.tensor,  # [B, Hkv, M, VALUE_DIM]
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
    n_suffix: tl.tensor,
    n_suffix_items: tl.tensor,
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
    """Attend with one tile of a KV cache's query rows to one stretch of its entries.

    The first `n_items` stretches are of the context and listed in `items`; the others are of the suffix,
    `n_suffix_items` per KV cache.
    """
    item = tl.program_id(0) // n_tiles
    tile = tl.program_id(0) % n_tiles
    if item < n_items:
        start = tl.load(items + 4 * item).to(tl.int64)
        length = tl.load(items + 4 * item + 1)
        cache = tl.load(items + 4 * item + 2)
        result = tl.load(items + 4 * item + 3)
    else:
        cache = (item - n_items) // n_suffix_items
        start = ((item - n_items) % n_suffix_items * longest).to(tl.int64)
        length = tl.minimum(n_suffix - start, longest).to(tl.int32)
        result = item
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
            weighted, total, highest = fold(
                q, k, v, here[None, :], weighted, total, highest, scaling, softcap, CAPPED, PRODUCTS
            )
    else:
        k_start = suffix_keys + batch * key_b + kv_head * key_h + start * key_m + dim[:, None]
        v_start = suffix_values + batch * value_b + kv_head * value_h + start * value_m + value_dim[None, :]
        # Not pipelined: the suffix is short, and blocks in flight would take as much shared memory again.
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
                visible = here[None, :] & ((start + n)[None, :] <= n_suffix - n_queries + nth[:, None])
            weighted, total, highest = fold(
                q, k, v, visible, weighted, total, highest, scaling, softcap, CAPPED, PRODUCTS
            )

    at = result.to(tl.int64) * (GROUP * n_queries) + row
    divisor = tl.where(total > 0.0, total, 1.0)
    target = results + at[:, None] * VALUE_DIM + value_dim[None, :]
    tl.store(target, weighted / divisor[:, None], mask=real[:, None] & (value_dim < VALUE_DIM)[None, :])
    tl.store(log_sums + at, tl.where(total > 0.0, highest + tl.log(divisor), float("-inf")), mask=real)


@triton.jit
def fold(
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
    """Add `n` entries to the softmax attention so far: weighted values, sum of weights, highest score."""
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


@triton.jit(do_not_specialize=["n_items", "n_suffix_items"])
def merge_stretches(
    results: tl.tensor,  # [n_results, R, VALUE_DIM]
    log_sums: tl.tensor,  # [n_results, R]
    bounds: tl.tensor,  # [C + 1]
    n_items: tl.tensor,
    n_suffix_items: tl.tensor,
    earlier: tl.tensor,  # [B, Q, Hq, VALUE_DIM]
    earlier_log_sums: tl.tensor,  # [C, R]
    output: tl.tensor,  # [B, Q, Hq, VALUE_DIM]
    output_log_sums: tl.tensor,  # [C, R]
    n_queries: tl.tensor,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_DIM_PADDED: tl.constexpr,
    BLOCK_RESULTS: tl.constexpr,
    EARLIER: tl.constexpr,
    LAST: tl.constexpr,
) -> None:
    """Merge, for one query row, the results of all stretches of its KV cache, weighted by their sums.

    An `EARLIER` merge of other stretches counts as one more result. All but the `LAST` store the sums, too.
    """
    n_rows = GROUP * n_queries
    cache = tl.program_id(0) // n_rows
    row = tl.program_id(0) % n_rows
    begin = tl.load(bounds + cache)
    n_context = tl.load(bounds + cache + 1) - begin
    n_results = n_context + n_suffix_items
    nth = tl.arange(0, BLOCK_RESULTS)
    dim = tl.arange(0, VALUE_DIM_PADDED)

    batch = cache // KV_HEADS
    head = cache % KV_HEADS * GROUP + row // n_queries
    to = (batch * n_queries + row % n_queries).to(tl.int64) * (KV_HEADS * GROUP) + head
    weighted = tl.zeros([VALUE_DIM_PADDED], tl.float32)
    total = tl.zeros([1], tl.float32)
    highest = tl.full([1], LOWEST, tl.float32)
    if EARLIER:
        sum_before = tl.load(earlier_log_sums + cache * n_rows + row)
        weighted = tl.load(earlier + to * VALUE_DIM + dim, mask=dim < VALUE_DIM, other=0.0)
        highest = tl.maximum(highest, sum_before)
        total = tl.exp(sum_before - highest)
    for first in range(0, n_results, BLOCK_RESULTS):
        i = first + nth
        here = i < n_results
        index = tl.where(i < n_context, begin + i, n_items + cache * n_suffix_items + i - n_context)
        at = index.to(tl.int64) * n_rows + row
        log_sum = tl.load(log_sums + at, mask=here, other=float("-inf"))
        source = results + at[:, None] * VALUE_DIM + dim[None, :]
        result = tl.load(source, mask=here[:, None] & (dim < VALUE_DIM)[None, :], other=0.0)
        higher = tl.maximum(highest, tl.max(log_sum, 0))
        weights = tl.exp(log_sum - higher)
        decay = tl.exp(highest - higher)
        total = total * decay + tl.sum(weights, 0)
        weighted = weighted * decay + tl.sum(weights[:, None] * result, 0)
        highest = higher

    mean = weighted / tl.where(total > 0.0, total, 1.0)
    tl.store(output + to * VALUE_DIM + dim, mean.to(output.dtype.element_ty), mask=dim < VALUE_DIM)
    if not LAST:
        merged = tl.where(total > 0.0, highest + tl.log(total), float("-inf"))
        tl.store(output_log_sums + cache * n_rows + row + tl.arange(0, 1), merged)
