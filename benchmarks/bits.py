"""What bits cost: bytes against the sum computed, attention of a decoding step against 16 bits, and quantising.

Attention alone, without the rest of a model, in which the price of reading codes is highest; in CPU seconds of this
process where it runs on a CPU, so that others on the machine count less. Quantising is compared with the attention of a
prefill of as many tokens, which is less than a prefill.
"""

from __future__ import annotations

import statistics
import time
from argparse import ArgumentParser
from functools import partial

import numpy as np
import torch
from measure import DTYPES, kernel_medians, parse, report, rounds

from baklava.budgets.bits import WIDTHS, Packing
from baklava.cache.attention.dense import dense_attention
from baklava.cache.attention.ragged_attention import ragged_attention
from baklava.cache.ragged_storage import RaggedEntries


@torch.inference_mode()
def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--group", type=int, default=3, help="query heads per KV head")
    parser.add_argument("--dim", type=int, default=64)
    arguments = parse(parser)
    heads, dim, length = arguments.kv_heads, arguments.dim, arguments.context
    shared = {"dtype": DTYPES[arguments.dtype], "device": arguments.device}
    keys, values = (torch.randn(1, heads, length, dim, **shared) for _ in range(2))
    query, suffix = (
        torch.randn(1, n_heads, n, dim, **shared) for n_heads, n in ((heads * arguments.group, 1), (heads, 16))
    )
    kept = torch.ones(heads, length, dtype=torch.bool, device=arguments.device)
    rows = torch.zeros(1, dtype=torch.int64, device=arguments.device)
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter

    def gather(width: int) -> RaggedEntries:
        return RaggedEntries.gather(keys, values, rows, kept, bits=torch.full((heads, 2), width))

    def milliseconds(calls: dict[int, partial], repeats: int) -> dict[int, float]:
        times = rounds(calls, repeats=repeats, device=arguments.device, warm_up=1, clock=clock)
        return {width: statistics.median(some) for width, some in times.items()}

    stored = {width: gather(width) for width in WIDTHS}
    steps = {
        width: partial(ragged_attention, query, entries, suffix, suffix, scaling=dim**-0.5)
        for width, entries in stored.items()
    }
    decode, kernels = milliseconds(steps, arguments.repeats), {}
    if arguments.device.startswith("cuda"):  # without the launches from Python
        kernels = {width: one["ms"] for width, one in kernel_medians(steps, repeats=arguments.repeats).items()}
    making = milliseconds({width: partial(gather, width) for width in WIDTHS}, max(1, arguments.repeats // 5))
    queries = torch.randn(1, heads * arguments.group, length, dim, **shared)
    prefill = milliseconds({0: partial(dense_attention, queries, keys, values, scaling=dim**-0.5)}, 1)[0]
    packing, counts = Packing(), np.full(heads, length)
    figures = []
    for width, entries in stored.items():
        computed = packing.cache_bytes(counts, np.full((heads, 2), width), (dim, dim), shared["dtype"].itemsize).sum()
        figures.append(
            {
                "bits": width,
                "bytes_over_computed": sum(tensor.nbytes for tensor in entries.tensors) / float(computed),
                "bytes_over_16_bits": float(entries.cache_bytes(torch.from_numpy(counts)).sum())
                / (2 * heads * length * dim * shared["dtype"].itemsize),
                "decode_over_16_bits": decode[width] / decode[16],
                **({"kernels_over_16_bits": kernels[width] / kernels[16]} if kernels else {}),
                "quantising_over_prefill_attention": (making[width] - making[16]) / prefill,
            }
        )
    columns = list(figures[0])
    table = [[f"{row[name]:.3f}" if name != "bits" else str(row[name]) for name in columns] for row in figures]
    absolute = {"decode": decode, "kernels": kernels, "quantising": making, "prefill_attention": prefill}
    report(
        f"{length} entries of {heads} KV heads",
        columns,
        table,
        {"widths": figures, "milliseconds": absolute},
        arguments,
    )


if __name__ == "__main__":
    main()
