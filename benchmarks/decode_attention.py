"""One decoding step's attention over a budgeted cache, next to dense attention over the full one.

    python benchmarks/decode_attention.py --json benchmarks/results/decode_attention-cpu.json

Dense candidates: what transformers does today (`sdpa` with `enable_gqa`; repeated KV heads), and the fastest dense
formulation PyTorch has (the query heads of a group as rows of their KV head). Ours: even budgets, and skewed ones (a
third of the KV heads whole as far as the total allows, the rest small).
"""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from itertools import product

import measure
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from baklava.budgets import Budgets
from baklava.cache.attention.ragged_attention import ragged_attention
from baklava.cache.ragged_storage import RaggedEntries


def shares(ratio: float, n_kv_heads: int, *, skewed: bool) -> Budgets:
    """Even or skewed shares of one layer with mean `1 - ratio`."""
    total = (1.0 - ratio) * n_kv_heads
    if not skewed or not ratio:
        return Budgets.uniform(n_layers=1, n_kv_heads=n_kv_heads, ratio=ratio)
    n_whole = min(round(n_kv_heads / 3), int(0.9 * total))
    large = [1.0] * n_whole if n_whole else [total / 2]
    rest = (total - sum(large)) / (n_kv_heads - len(large))
    return Budgets.from_shares([large + [rest] * (n_kv_heads - len(large))], ratio=ratio)


def compressed(keys: Tensor, values: Tensor, budgets: Budgets) -> RaggedEntries:
    """The last entries of each KV cache, as many as its budget says."""
    batch, _, length, _ = keys.shape
    counts = torch.from_numpy(budgets.entries(length)[0]).repeat(batch).to(keys.device)  # [B * Hkv]
    kept = torch.arange(length, device=keys.device) >= length - counts[:, None]
    return RaggedEntries.gather(keys, values, torch.arange(batch, device=keys.device), kept)


def dense_candidates(query: Tensor, keys: Tensor, values: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ways to attend from `[B, Hq, 1, D]` to full caches `[B, Hkv, T, D]`."""
    batch, n_heads, _, dim = query.shape
    n_kv_heads = keys.shape[1]
    group = n_heads // n_kv_heads
    packed = query.view(batch, n_kv_heads, group, dim)

    def matmul() -> Tensor:
        return torch.matmul(torch.matmul(packed * dim**-0.5, keys.transpose(-1, -2)).softmax(-1), values)

    return {
        "sdpa, enable_gqa": lambda: sdpa(query, keys, values, enable_gqa=True),
        "sdpa, repeated KV": lambda: sdpa(query, keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)),
        "sdpa, packed": lambda: sdpa(packed, keys, values),
        "matmul, packed": matmul,
    }


def budgeted_candidates(
    query: Tensor, keys: Tensor, values: Tensor, ratios: Sequence[float]
) -> dict[tuple[float, str], Callable[[], Tensor]]:
    """Ours, by ratio and kind of budgets, with 32 tokens since the context."""
    suffix = [torch.randn_like(keys[:, :, :32]) for _ in range(2)]

    def step(entries: RaggedEntries) -> Callable[[], Tensor]:
        return lambda: ragged_attention(query, entries, *suffix, scaling=query.shape[-1] ** -0.5)

    return {
        (ratio, kind): step(compressed(keys, values, shares(ratio, keys.shape[1], skewed=kind == "skewed")))
        for ratio in ratios
        for kind in (("even", "skewed") if ratio else ("even",))
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.5, 0.7, 0.9])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--heads", type=int, nargs=3, default=[32, 8, 128], help="query heads, KV heads, dimension")
    arguments = measure.parse(parser)
    n_heads, n_kv_heads, dim = arguments.heads
    options = {"device": arguments.device, "dtype": measure.DTYPES[arguments.dtype]}
    rows, figures = [], []
    for batch, length in product(arguments.batches, arguments.contexts):
        keys, values = (torch.randn(batch, n_kv_heads, length, dim, **options) for _ in range(2))
        query = torch.randn(batch, n_heads, 1, dim, **options)
        dense, ours = dense_candidates(query, keys, values), budgeted_candidates(query, keys, values, arguments.ratios)
        with torch.inference_mode():
            times = measure.medians({**dense, **ours}, repeats=arguments.repeats, device=arguments.device)
        fastest = min(times[name]["ms"] for name in dense)
        for name, one in times.items():
            against, bar = one["ms"] / fastest, ""
            if isinstance(name, tuple):
                limit = 1.15 * (1 - name[0]) + 0.05 if name[0] else 1.1
                bar = f"{limit:.2f} " + ("met" if against <= limit else "missed")
                name = f"ours, r = {name[0]:g}, {name[1]}"
            rows.append((str(batch), f"{length:,}", name, f"{one['ms']:.2f}", f"{against:.2f}", bar))
            figures.append({"batch": batch, "context": length, "candidate": name, **one, "of_fastest_dense": against})
    title = f"Attention of one decoding step, {n_heads} query / {n_kv_heads} KV heads of {dim}, {arguments.dtype}"
    columns = ("batch", "context", "candidate", "ms", "of the fastest dense", "bar")
    measure.report(title, columns, rows, {"attention": figures}, arguments)


if __name__ == "__main__":
    main()
