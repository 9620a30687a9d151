"""Compiles the kernel for GPUs that need not be there; prints the shared memory that each program takes, as JSON.

A process of its own: `test_compiles.py` runs in one whose Triton interprets.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from baklava.cache.attention import triton_decode, triton_kernels, triton_packed

# GPU (compute capability), dtype, head dimension, query rows, whether with a mask and soft-capped scores.
VARIANTS = (
    (80, torch.bfloat16, 128, 4, False),
    (90, torch.float16, 64, 1000, False),
    (80, torch.bfloat16, 256, 1000, True),
    (90, torch.float32, 256, 20, True),
)
# GPU, bits of keys and values, head dimension, query rows, soft-capped scores.
PACKED_VARIANTS = ((80, (4, 4), 128, 4, False), (90, (2, 8), 64, 40, True), (80, (16, 2), 128, 1000, False))
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
OTHERS = {
    **dict.fromkeys(("items", "bounds"), "*i32"),
    **dict.fromkeys(("results", "log_sums", "earlier", "earlier_log_sums", "output_log_sums"), "*fp32"),
    **dict.fromkeys(("scaling", "softcap"), "fp32"),
    "mask": "*i1",
}


def compiled(kernel: Any, capability: int, tensors: dict[str, str], fixed: dict[str, Any], stages: int) -> Any:
    """As a launch compiles it: `fixed` are its compile-time arguments, pointers are aligned."""
    types = {**tensors, **OTHERS, **dict.fromkeys(fixed, "constexpr")}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    places = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    aligned = {places[name]: [["tt.divisibility", 16]] for name, kind in signature.items() if kind.startswith("*")}
    source = ASTSource(kernel, signature, {places[name]: value for name, value in fixed.items()}, aligned)
    return compile_kernel(source, GPUTarget("cuda", capability, 32), {"num_warps": 4, "num_stages": stages})


def shared_bytes(capability: int, dtype: torch.dtype, dim: int, n_rows: int, special: bool) -> int:
    blocks = triton_decode.block_sizes(n_rows, dim, dim, dtype)
    heads = {"GROUP": 4, "KV_HEADS": 8}
    fixed = {**heads, **blocks, "MASKED": special, "CAPPED": special, **({} if special else {"mask": None})}
    model = dict.fromkeys(("query", "keys", "values", "suffix_keys", "suffix_values", "output"), TYPES[dtype])
    attend = compiled(triton_kernels.attend_stretches, capability, model, fixed, triton_decode.PIPELINE_STAGES)
    merge = {**heads, "VALUE_DIM": dim, **triton_decode.merge_sizes(dim)}
    merged = [
        compiled(triton_kernels.merge_stretches, capability, model, {**merge, "EARLIER": earlier, "LAST": last}, 2)
        for earlier, last in ((False, True), (True, False))
    ]
    return max(kernel.metadata.shared for kernel in (attend, *merged))


def packed_shared_bytes(capability: int, bits: tuple[int, int], dim: int, n_rows: int, capped: bool) -> int:
    codes = ("*u8" if width < 16 else "*bf16" for width in bits)
    scales = dict.fromkeys(("key_scale", "key_zero", "value_scale", "value_zero"), "*fp16")
    tensors = {"query": "*bf16", **scales, **dict(zip(("keys", "values"), codes, strict=True))}
    fixed = {**triton_packed.block_sizes(n_rows, (dim, dim), bits, group=32, span=32), "CAPPED": capped}
    fixed["PRODUCTS"] = triton_decode.PRODUCTS[torch.bfloat16]
    return compiled(
        triton_packed.attend_groups, capability, tensors, fixed, triton_packed.PIPELINE_STAGES
    ).metadata.shared


if __name__ == "__main__":
    taken = [[str(variant), variant[0], shared_bytes(*variant)] for variant in VARIANTS]
    taken += [[str(variant), variant[0], packed_shared_bytes(*variant)] for variant in PACKED_VARIANTS]
    print(json.dumps(taken))
