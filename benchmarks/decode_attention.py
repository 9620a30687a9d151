"""One decoding step's attention over a budgeted cache, next to dense attention over the full one.

    python benchmarks/decode_attention.py --json benchmarks/results/decode_attention-cpu.json

Dense candidates: what transformers does today (`sdpa` with `enable_gqa`; repeated KV heads), and the fastest dense
formulation PyTorch has (the query heads of a group as rows of their KV head). Ours: even budgets, and skewed ones (a
third of the KV heads whole as far as the total allows, the rest small). Other ways to read skewed budgets: a mask over
the full cache, KV caches padded to the longest, and on a GPU `varlen_attn` and (`--flex`) FlexAttention.

On a GPU the kernels of a step are replayed as a CUDA graph, so that launches from Python do not count (`as_called` in
the JSON has them), and `of the limit` is the bytes that a step has to read at the bandwidth of a large copy, over its
time. What fits into the L2 cache can exceed it.
"""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from itertools import product

import measure
import other_attention
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


def kept_entries(keys: Tensor, budgets: Budgets) -> Tensor:
    """Which entries `[B * Hkv, T]` stay: the last of each KV cache, as many as its budget says."""
    batch, _, length, _ = keys.shape
    counts = torch.from_numpy(budgets.entries(length)[0]).repeat(batch).to(keys.device)  # [B * Hkv]
    return torch.arange(length, device=keys.device) >= length - counts[:, None]


def compressed(keys: Tensor, values: Tensor, budgets: Budgets) -> RaggedEntries:
    """The entries that stay, in ragged storage."""
    return RaggedEntries.gather(keys, values, torch.arange(len(keys), device=keys.device), kept_entries(keys, budgets))


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


def read_bytes(keys: Tensor, ratio: float) -> float:
    """What a step has to read of keys and values."""
    return (1.0 - ratio) * 2 * keys.nbytes


def verdict(against: float, ratio: float) -> str:
    """Whether a step of ours is as much faster than the dense one as its entries are fewer, within 15 %."""
    limit = 1.15 * (1 - ratio) + 0.05 if ratio else 1.1
    return f"{limit:.2f} " + ("met" if against <= limit else "missed")


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.5, 0.7, 0.9])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--heads", type=int, nargs=3, default=[32, 8, 128], help="query heads, KV heads, dimension")
    parser.add_argument("--most-tokens", type=int, default=2**20, help="skip batches of more tokens than this")
    parser.add_argument("--flex", action="store_true", help="FlexAttention too, which is compiled for each shape")
    arguments = measure.parse(parser)
    cuda = arguments.device.startswith("cuda")
    n_heads, n_kv_heads, dim = arguments.heads
    options = {"device": arguments.device, "dtype": measure.DTYPES[arguments.dtype]}
    rows, figures = [], []
    bandwidth = measure.copy_bandwidth(arguments.device)
    for batch, length in product(arguments.batches, arguments.contexts):
        if batch * length > arguments.most_tokens:
            continue
        keys, values = (torch.randn(batch, n_kv_heads, length, dim, **options) for _ in range(2))
        query = torch.randn(batch, n_heads, 1, dim, **options)
        with torch.inference_mode():
            dense = dense_candidates(query, keys, values)
            candidates = {**dense, **budgeted_candidates(query, keys, values, arguments.ratios)}
            for ratio in filter(None, arguments.ratios):
                kept = kept_entries(keys, shares(ratio, n_kv_heads, skewed=True))
                candidates |= {
                    (ratio, f"skewed, {name}"): other
                    for name, other in other_attention.candidates(query, keys, values, kept, arguments.flex).items()
                }
            times = measure.medians(candidates, repeats=arguments.repeats, device=arguments.device)
            called = times
            if cuda:
                times = measure.kernel_medians(candidates, repeats=arguments.repeats)
        fastest = min(times[name]["ms"] for name in dense)
        for name, one in times.items():
            against, bar, ratio = one["ms"] / fastest, "", name[0] if isinstance(name, tuple) else 0.0
            of_limit = read_bytes(keys, ratio) / bandwidth / (one["ms"] / 1e3)
            called_ms = called[name]["ms"]
            if isinstance(name, tuple):
                bar = verdict(against, ratio) if "," not in name[1] else ""
                name = f"{'theirs' if ',' in name[1] else 'ours'}, r = {ratio:g}, {name[1]}"
            rows.append((str(batch), f"{length:,}", name, f"{one['ms']:.3f}", f"{of_limit:.2f}", f"{against:.2f}", bar))
            figures.append(
                {"batch": batch, "context": length, "candidate": name, **one}
                | {"of_fastest_dense": against, "of_limit": of_limit, "as_called_ms": called_ms}
            )
        del dense, candidates
    title = f"Attention of one decoding step, {n_heads} query / {n_kv_heads} KV heads of {dim}, {arguments.dtype}"
    columns = ("batch", "context", "candidate", "ms", "of the limit", "of the fastest dense", "bar")
    measure.report(title, columns, rows, {"copy_bytes_per_second": bandwidth, "attention": figures}, arguments)


if __name__ == "__main__":
    main()
