"""Attention of a decoding step on CUDA, to a compressed context and to the suffix: the launch of the Triton kernels.

As in Flash-Decoding (https://crfm.stanford.edu/2023/10/12/flashdecoding.html) the entries are split between programs,
here along ragged storage: a program takes one stretch of one KV cache, and no stretch is long, so that all programs
finish at about the same time however uneven the budgets are. The queries of a KV cache, those of all heads of its
group, share one read of it. A second kernel merges the results of all stretches of a KV cache by log-sum-exp, always
in the same order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from baklava.cache.attention.triton_kernels import attend_stretches, merge_stretches
from baklava.cache.ragged_layout import WorkItems
from baklava.cache.ragged_storage import RaggedEntries

# Blocks of this many bytes of keys and of values, two of each in flight, so that the next are loaded while one is in
# use. On an H100, half and twice as much are slower, as are fewer and more stages.
BLOCK_BYTES = 2**14
PIPELINE_STAGES = 3
# Shared memory of a program (these blocks, queries and weights), which limits how many of them a multiprocessor holds.
SHARED_BYTES = 4 * BLOCK_BYTES + 2**13
# A longer stretch gains nothing; shorter ones balance the load better at the end.
MAX_STRETCH = 1024
# Query rows of a program: a tensor core multiplies 16 at least, and registers must hold their outputs.
MIN_ROWS, MAX_ROWS = 16, 64
# Numbers of results that are merged at a time.
MERGED_NUMBERS = 2**14
# In what the kernels multiply; they sum in float32.
PRODUCTS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Merged(NamedTuple):
    """Attention to some of the entries: outputs `[B, Q, Hq, D]` and log-sum-exps `[C, group * Q]`, in float32."""

    outputs: Tensor
    log_sums: Tensor


def ragged_decode(
    query: Tensor,
    entries: RaggedEntries,
    suffix_keys: Tensor,
    suffix_values: Tensor,
    *,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    longest: int | None = None,
    earlier: Merged | None = None,
) -> Tensor:
    """Compute `ragged_attention.ragged_attention` for tensors of one 16- or 32-bit type on a GPU.

    Sums are in float32; a query that sees nothing gets zeros. A program takes at most `longest` entries; the default
    suits the device. `earlier` is attention to entries that lie elsewhere.
    """
    batch, n_heads, n_queries, dim = query.shape
    n_kv_heads, n_suffix, value_dim = suffix_values.shape[1:]
    group = n_heads // n_kv_heads
    n_caches, n_rows = batch * n_kv_heads, group * n_queries
    query, suffix_keys, suffix_values = (_with_dense_vectors(tensor) for tensor in (query, suffix_keys, suffix_values))

    blocks = block_sizes(n_rows, dim, value_dim, query.dtype)
    n_tiles = triton.cdiv(n_rows, blocks["BLOCK_ROWS"])
    if longest is None:
        longest = choose_longest(entries.layout.n_entries, n_tiles, blocks["BLOCK_ENTRIES"], query.device)
    items = entries.layout.work_items(longest)
    n_suffix_items = triton.cdiv(n_suffix, longest)
    n_results = len(items) + n_caches * n_suffix_items

    results = query.new_empty(n_results, n_rows, value_dim, dtype=torch.float32)
    log_sums = query.new_empty(n_results, n_rows, dtype=torch.float32)
    # Triton launches on the current device, which is not that of every layer of a model spread over several.
    with torch.cuda.device_of(query):
        attend_stretches[(n_results * n_tiles,)](
            query,
            *query.stride()[:3],
            entries.keys,
            entries.values,
            items.table,
            len(items),
            suffix_keys,
            *suffix_keys.stride()[:3],
            suffix_values,
            *suffix_values.stride()[:3],
            mask,
            *_mask_strides(mask),
            results,
            log_sums,
            float(scaling),
            softcap or 1.0,
            n_queries,
            n_suffix,
            n_suffix_items,
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
    output = query.new_empty(batch, n_queries, n_heads, value_dim, dtype=kernel_dtype(query.dtype))
    _launch_merge(results, log_sums, items, n_suffix_items, output, None, earlier)
    return output.transpose(1, 2).to(query.dtype)


def merge(
    results: Tensor, log_sums: Tensor, items: WorkItems, batch: int, group: int, earlier: Merged | None
) -> Merged:
    """Merge results `[n, R, D]` and log-sum-exps `[n, R]` of work items, and what was merged before."""
    n_rows, value_dim = results.shape[1:]
    n_heads = (len(items.bounds) - 1) // batch * group
    outputs = results.new_empty(batch, n_rows // group, n_heads, value_dim)
    merged = Merged(outputs, log_sums.new_empty(len(items.bounds) - 1, n_rows))
    _launch_merge(results, log_sums, items, 0, outputs, merged.log_sums, earlier)
    return merged


def _launch_merge(
    results: Tensor,
    log_sums: Tensor,
    items: WorkItems,
    n_suffix_items: int,
    output: Tensor,
    output_log_sums: Tensor | None,
    earlier: Merged | None,
) -> None:
    batch, n_queries, n_heads, value_dim = output.shape
    n_kv_heads = (len(items.bounds) - 1) // batch
    with torch.cuda.device_of(output):
        merge_stretches[(batch * n_heads * n_queries,)](
            results,
            log_sums,
            items.bounds,
            len(items),
            n_suffix_items,
            *(earlier or (None, None)),
            output,
            output_log_sums,
            n_queries,
            GROUP=n_heads // n_kv_heads,
            KV_HEADS=n_kv_heads,
            VALUE_DIM=value_dim,
            **merge_sizes(value_dim),
            EARLIER=earlier is not None,
            LAST=output_log_sums is None,
            num_warps=4,
        )


def _with_dense_vectors(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@lru_cache
def block_sizes(n_rows: int, dim: int, value_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Choose what the kernel is compiled for: head dimensions, and query rows and entries of one product.

    Sizes of blocks are powers of two.
    """
    padded, value_padded = pad_dim(dim), pad_dim(value_dim)
    n_vectors = max(16, BLOCK_BYTES // (max(padded, value_padded) * dtype.itemsize))
    return {
        "DIM": dim,
        "DIM_PADDED": padded,
        "VALUE_DIM": value_dim,
        "VALUE_DIM_PADDED": value_padded,
        "PRODUCTS": PRODUCTS[kernel_dtype(dtype)],
        "BLOCK_ROWS": min(MAX_ROWS, n_vectors, max(MIN_ROWS, triton.next_power_of_2(n_rows))),
        "BLOCK_ENTRIES": min(128, n_vectors),
    }


def pad_dim(dim: int) -> int:
    """The power of two that a kernel's blocks have for a head dimension; a tensor core multiplies 16 at least."""
    return max(16, triton.next_power_of_2(dim))


def merge_sizes(value_dim: int) -> dict[str, int]:
    """What the merging kernel is compiled for."""
    padded = pad_dim(value_dim)
    return {"VALUE_DIM_PADDED": padded, "BLOCK_RESULTS": MERGED_NUMBERS // padded}


def kernel_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the kernels multiply and store; on a GPU that of the tensors.

    Triton's interpreter has no products of bfloat16, and truncates where the GPU rounds.
    """
    interpreted = not isinstance(attend_stretches, triton.JITFunction)
    return torch.float32 if interpreted and dtype == torch.bfloat16 else dtype


def _mask_strides(mask: Tensor | None) -> tuple[int, int, int]:
    """Return the strides per batch row, query and key of a mask `[B or 1, 1, Q, M]`."""
    if mask is None:
        return 0, 0, 0
    return mask.stride(0) if mask.shape[0] > 1 else 0, mask.stride(2), mask.stride(3)


def choose_longest(n_entries: int, n_tiles: int, block_entries: int, device: torch.device) -> int:
    """Choose entries per program, a multiple of `block_entries`, so that all multiprocessors finish together.

    Each stretch is read once per tile of query rows. The choice depends on the context alone, so that one table of work
    items serves all tokens that are decoded with it.
    """
    n_parallel = _count_parallel_programs(device)
    n_rounds = max(1, triton.cdiv(n_entries, n_parallel * MAX_STRETCH))
    fair = triton.cdiv(n_entries * n_tiles, n_parallel * n_rounds)
    return block_entries * max(1, triton.cdiv(fair, block_entries))


@lru_cache
def _count_parallel_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 8
    gpu = torch.cuda.get_device_properties(device)
    return gpu.multi_processor_count * max(1, gpu.shared_memory_per_multiprocessor // SHARED_BYTES)
