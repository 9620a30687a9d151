"""Attention to quantised entries on CUDA: a Triton kernel that reads codes and expands them in registers.

A program takes a stretch of the groups of one KV cache, group by group, as in `triton_decode`, whose kernel merges the
results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from baklava.cache.attention.triton_decode import PRODUCTS, Merged, choose_longest, kernel_dtype, merge, pad_dim
from baklava.cache.attention.triton_kernels import LOWEST, fold
from baklava.cache.packed_entries import PackedEntries
from baklava.cache.ragged_layout import WorkItems

MIN_ROWS, BLOCK_NUMBERS = 16, 2**12  # query rows of a program at least, and numbers of its queries
# Entries that are multiplied together, of several groups. On an H100, half and twice as many are slower, as are more
# warps, and more programs with less to do each.
STEP_ENTRIES = 64
PIPELINE_STAGES = 2


def reads(stored: PackedEntries) -> bool:
    """Whether the kernel reads such groups: larger ones fill the shared memory, and it shifts by powers of two."""
    span = stored.values.span
    return stored.packing.group in (16, 32) and stored.dim <= 128 and span & (span - 1) == 0


def attend(query: Tensor, packed: Sequence[PackedEntries], *, scaling: float, softcap: float | None) -> Merged | None:
    """Attend with queries `[B, Hq, Q, D]` to all that is packed, multiplying in their dtype; None: nothing is."""
    batch, n_heads, _, dim = query.shape
    merged = None
    for stored in packed:
        n_caches = len(stored.counts)
        group = n_heads * batch // n_caches
        rows = query.reshape(n_caches, -1, dim)  # row g * Q + q is query q of head g of the group
        items, results, log_sums = _attend(rows, stored, scaling, softcap)
        merged = merge(results, log_sums, items, batch, group, merged)
    return merged


def _attend(
    query: Tensor, stored: PackedEntries, scaling: float, softcap: float | None
) -> tuple[WorkItems, Tensor, Tensor]:
    """Attend with `[C, R, D]` to stretches: work items `[n]`, outputs `[n, R, D]`, log-sum-exps `[n, R]` in float32."""
    n_rows, group = query.shape[1], stored.packing.group
    keys, values = stored.keys, stored.values
    dims, bits = (keys.codes.shape[-1], values.codes.shape[-1]), (keys.bits, values.bits)
    sizes = block_sizes(n_rows, dims, bits, group, values.span)
    n_tiles = triton.cdiv(n_rows, sizes["BLOCK_ROWS"])
    longest = choose_longest(stored.layout.n_entries * group, n_tiles, group, query.device) // group
    items = stored.layout.work_items(longest)
    results = query.new_empty(len(items), n_rows, sizes["VALUE_DIM"], dtype=torch.float32)
    log_sums = query.new_empty(len(items), n_rows, dtype=torch.float32)
    if len(items):
        with torch.cuda.device_of(query):
            attend_groups[(len(items) * n_tiles,)](
                query,
                *keys.tensors,
                *values.tensors,
                items.table,
                results,
                log_sums,
                float(scaling),
                softcap or 1.0,
                n_rows,
                n_tiles,
                CAPPED=softcap is not None,
                PRODUCTS=PRODUCTS[kernel_dtype(query.dtype)],
                **sizes,
                num_warps=4,
                num_stages=PIPELINE_STAGES,
            )
    return items, results, log_sums


def block_sizes(n_rows: int, dims: tuple[int, int], bits: tuple[int, int], group: int, span: int) -> dict[str, Any]:
    """What the kernel is compiled for; `dims` and `bits` of keys and of values."""
    padded, value_padded = map(pad_dim, dims)
    most = max(MIN_ROWS, BLOCK_NUMBERS // max(padded, value_padded))
    return {
        "DIM": dims[0],
        "DIM_PADDED": padded,
        "VALUE_DIM": dims[1],
        "VALUE_DIM_PADDED": value_padded,
        "KEY_BITS": bits[0],
        "VALUE_BITS": bits[1],
        "GROUP_SIZE": group,
        "SPAN": span,
        "GROUPS": STEP_ENTRIES // group,
        "BLOCK_ROWS": min(most, max(MIN_ROWS, triton.next_power_of_2(n_rows))),
    }


@triton.jit(do_not_specialize=["n_rows", "n_tiles"])
def attend_groups(
    query: tl.tensor,  # [C, R, DIM]
    keys: tl.tensor,  # [P, GROUP_SIZE * KEY_BITS / 8, DIM]
    key_scale: tl.tensor,  # [P, 1, DIM]
    key_zero: tl.tensor,
    values: tl.tensor,  # [P, GROUP_SIZE * VALUE_BITS / 8, VALUE_DIM]
    value_scale: tl.tensor,  # [P, GROUP_SIZE, VALUE_DIM / SPAN]
    value_zero: tl.tensor,
    items: tl.tensor,  # [n_items, 4], in groups
    results: tl.tensor,  # [n_items, R, VALUE_DIM]
    log_sums: tl.tensor,  # [n_items, R]
    scaling: tl.tensor,
    softcap: tl.tensor,
    n_rows: tl.tensor,
    n_tiles: tl.tensor,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_DIM_PADDED: tl.constexpr,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SPAN: tl.constexpr,
    GROUPS: tl.constexpr,
    CAPPED: tl.constexpr,
    PRODUCTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> None:
    """Attend with one tile of a KV cache's query rows to one stretch of its groups."""
    item = tl.program_id(0) // n_tiles
    first = tl.load(items + 4 * item).to(tl.int64)
    n_groups = tl.load(items + 4 * item + 1)
    cache = tl.load(items + 4 * item + 2).to(tl.int64)
    result = tl.load(items + 4 * item + 3).to(tl.int64)
    row = tl.program_id(0) % n_tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    real = row < n_rows
    dim = tl.arange(0, DIM_PADDED)
    value_dim = tl.arange(0, VALUE_DIM_PADDED)
    N_SPANS: tl.constexpr = VALUE_DIM_PADDED // SPAN if VALUE_BITS < 16 else 1
    span = tl.arange(0, N_SPANS)
    within = tl.arange(0, GROUPS)  # the groups of a step
    entry = tl.arange(0, GROUPS * GROUP_SIZE)
    real_dim, real_value_dim = dim < DIM, value_dim < VALUE_DIM
    rows = query + (cache * n_rows + row[:, None]) * DIM + dim[None, :]
    q = tl.load(rows, mask=real[:, None] & real_dim[None, :], other=0.0).to(PRODUCTS)

    weighted = tl.zeros([BLOCK_ROWS, VALUE_DIM_PADDED], tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    highest = tl.full([BLOCK_ROWS], LOWEST, tl.float32)
    for begin in range(0, n_groups, GROUPS):
        here = begin + entry // GROUP_SIZE < n_groups
        nth = first + begin + entry // GROUP_SIZE  # the group of each entry
        k = _codes(
            keys,
            nth[None, :],
            entry[None, :],
            dim[:, None],
            real_dim[:, None] & here[None, :],
            KEY_BITS,
            GROUP_SIZE,
            DIM,
        )
        if KEY_BITS < 16:  # a scale per group and channel
            at = (first + begin + within[None, :]) * DIM + dim[:, None]
            seen = real_dim[:, None] & (begin + within < n_groups)[None, :]
            scale = tl.load(key_scale + at, mask=seen, other=0.0).to(tl.float32)
            zero = tl.load(key_zero + at, mask=seen, other=0.0).to(tl.float32)
            k = tl.reshape(k, [DIM_PADDED, GROUPS, GROUP_SIZE]) * scale[:, :, None] + zero[:, :, None]
            k = tl.reshape(k, [DIM_PADDED, GROUPS * GROUP_SIZE])
        v = _codes(
            values,
            nth[:, None],
            entry[:, None],
            value_dim[None, :],
            here[:, None] & real_value_dim[None, :],
            VALUE_BITS,
            GROUP_SIZE,
            VALUE_DIM,
        )
        if VALUE_BITS < 16:  # a scale per entry and span of channels
            at = (nth * GROUP_SIZE + entry % GROUP_SIZE)[:, None] * (VALUE_DIM // SPAN) + span[None, :]
            seen = here[:, None] & (span < VALUE_DIM // SPAN)[None, :]
            scales = tl.load(value_scale + at, mask=seen, other=0.0).to(tl.float32)
            zeros = tl.load(value_zero + at, mask=seen, other=0.0).to(tl.float32)
            v = tl.reshape(v, [GROUPS * GROUP_SIZE, N_SPANS, SPAN]) * scales[:, :, None] + zeros[:, :, None]
            v = tl.reshape(v, [GROUPS * GROUP_SIZE, VALUE_DIM_PADDED])
        weighted, total, highest = fold(
            q, k, v, here[None, :], weighted, total, highest, scaling, softcap, CAPPED, PRODUCTS
        )

    at = result * n_rows + row
    target = results + at[:, None] * VALUE_DIM + value_dim[None, :]
    tl.store(target, weighted / total[:, None], mask=real[:, None] & real_value_dim[None, :])
    tl.store(log_sums + at, highest + tl.log(total), mask=real)


@triton.jit
def _codes(
    codes: tl.tensor,
    group: tl.tensor,
    entry: tl.tensor,
    dim: tl.tensor,
    mask: tl.tensor,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    DIM: tl.constexpr,
) -> tl.tensor:
    """Load entries of groups as numbers: codes where there are few bits, else as they are stored."""
    nth = entry % GROUP_SIZE
    if BITS < 16:
        N_BYTES: tl.constexpr = GROUP_SIZE * BITS // 8
        packed = tl.load(codes + (group * N_BYTES + nth % N_BYTES) * DIM + dim, mask=mask, other=0).to(tl.int32)
        numbers = ((packed >> (nth // N_BYTES * BITS)) & ((1 << BITS) - 1)).to(tl.float32)
    else:
        numbers = tl.load(codes + (group * GROUP_SIZE + nth) * DIM + dim, mask=mask, other=0.0).to(tl.float32)
    return numbers
