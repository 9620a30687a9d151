"""Is the Triton kernel right on this GPU? Random steps against float64, and whole models against `DynamicCache`.

    python benchmarks/ragged_decode_cuda.py --json benchmarks/results/ragged_decode-h100.json

Head dimensions 64 to 256, groups of 1 to 8 query heads, batches of 1 to 8, KV caches of 0 to 131,072 entries, even and
very uneven; 1 to 16 queries, with masks and soft-capped scores. New tensors are full of NaN before the kernel writes to
them. Without a GPU it runs in Triton's interpreter, on a few short steps; the models then take the path of the CPU.
"""

from __future__ import annotations

import os
import random
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():  # Triton asks when it is imported, which Transformers does
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.append(str(Path(__file__).parent.parent / "tests" / "support"))

import measure
from tiny_models import CLASSES, WINDOWED, random_model, random_tokens
from torch import Tensor
from transformers.cache_utils import DynamicCache

from baklava import BudgetedCache, Budgets
from baklava.cache.attention.triton_decode import ragged_decode
from baklava.cache.ragged_layout import RaggedLayout
from baklava.cache.ragged_storage import RaggedEntries

N_KV_HEADS = 2
KINDS = ("even", "one long", "random", "some empty", "one entry")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of the largest output: weights and outputs are rounded to the tensors' type, sums are kept in float32.
MOST_ERROR = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
# Of a logit, in float32, where sums are taken in another order.
MOST_LOGIT_ERROR = 1e-4


@dataclass(frozen=True)
class Case:
    """One step of decoding; `lengths` says how the KV caches differ."""

    dtype: str
    dim: int
    group: int
    lengths: str
    batch: int
    n_queries: int
    softcap: float | None
    masked: bool


def cases() -> Iterator[Case]:
    """All types, shapes and kinds of lengths, with a batch, queries and a mask drawn for each.

    Only the largest heads, Gemma's, have soft-capped scores: every combination more is compiled anew.
    """
    draw = random.Random(0)
    for dtype, dim, group, lengths in product(DTYPES, (64, 128, 256), (1, 2, 4, 7, 8), KINDS):
        yield Case(
            dtype=dtype,
            dim=dim,
            group=group,
            lengths=lengths,
            batch=draw.choice((1, 2, 4, 8)),
            n_queries=draw.choice((1, 1, 2, 5, 16)),
            softcap=30.0 if dim == 256 and draw.random() < 0.5 else None,
            masked=draw.random() < 0.15,
        )


def counts_of(case: Case, longest: int) -> Tensor:
    """Entries `[C]` of the KV caches."""
    n = case.batch * N_KV_HEADS
    drawn = torch.randint(longest + 1, (n,))
    if case.lengths == "one long":
        return torch.cat([torch.tensor([longest]), drawn[1:] // 100])
    if case.lengths == "some empty":
        return torch.where(torch.arange(n) % 2 == 0, 0, drawn)
    if case.lengths == "random":
        return drawn
    return torch.full((n,), 1 if case.lengths == "one entry" else longest // 2)


def error_of(case: Case, longest: int, device: str) -> float:
    """Largest error of an output, of the largest output; NaN where the kernel left something out."""
    layout = RaggedLayout.of(counts_of(case, longest), torch.device(device))
    n_suffix = case.n_queries + 37
    options: dict[str, Any] = {"device": device, "dtype": DTYPES[case.dtype]}
    entries = RaggedEntries(*(torch.randn(layout.n_entries, case.dim, **options) for _ in range(2)), layout)
    query = torch.randn(case.batch, case.n_queries, N_KV_HEADS * case.group, case.dim, **options).transpose(1, 2) * 3
    suffix = [torch.randn(case.batch, N_KV_HEADS, n_suffix, case.dim, **options) for _ in range(2)]
    visible = torch.ones(case.batch, 1, case.n_queries, n_suffix, dtype=torch.bool, device=device).tril(37)
    if case.masked:
        visible &= torch.rand(visible.shape, device=device) < 0.7
        visible[..., 0] = True
    scaling = case.dim**-0.5
    output = ragged_decode(
        query, entries, *suffix, scaling=scaling, mask=visible if case.masked else None, softcap=case.softcap
    )
    errors, largest = [], []
    for cache in range(len(layout.counts)):
        row, head = divmod(cache, N_KV_HEADS)
        mine = slice(head * case.group, (head + 1) * case.group)
        own_suffix = [tensor[row, head] for tensor in suffix]
        expected = reference(query[row, mine], entries, own_suffix, visible[row, 0], cache, case)
        errors.append((output[row, mine] - expected).abs().max())
        largest.append(expected.abs().max())
    return float(torch.stack(errors).max() / torch.stack(largest).max())


def reference(
    query: Tensor, entries: RaggedEntries, suffix: list[Tensor], visible: Tensor, cache: int, case: Case
) -> Tensor:
    """In float64: queries `[group, Q, D]` to a KV cache's entries and suffix `[M, D]`, of which `[Q, M]` is visible."""
    slots = torch.arange(int(entries.layout.counts[cache]), device=query.device)
    where = entries.layout.positions(torch.full_like(slots, cache), slots)
    keys, values = (
        torch.cat([stored[where], new]).double()
        for stored, new in zip((entries.keys, entries.values), suffix, strict=True)
    )
    scores = query.double() @ keys.T * case.dim**-0.5  # [group, Q, T + M]
    if case.softcap is not None:
        scores = case.softcap * (scores / case.softcap).tanh()
    hidden = torch.cat([torch.zeros(len(visible), len(slots), dtype=torch.bool, device=query.device), ~visible], -1)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values


def logit_error(family: str, device: str) -> float:
    """Largest difference to the logits with a `DynamicCache`, of a context and of steps of several lengths."""
    model, ids = random_model(family, dtype=torch.float32).to(device), random_tokens(140, rows=2).to(device)
    budgets = Budgets.uniform(n_layers=1 if family in WINDOWED else 2, n_kv_heads=2, ratio=0.0)
    ours = logits(model, BudgetedCache(model.config, budgets), ids)
    model.set_attn_implementation("eager" if family == "gemma2" else "sdpa")  # only eager knows soft-capped scores
    return float((ours - logits(model, DynamicCache(config=model.config), ids)).abs().max())


def logits(model: Any, cache: Any, ids: Tensor) -> Tensor:
    parts, at = [], 0
    with torch.inference_mode():
        for n in (129, 5, 1, 3, 1, 1):
            parts.append(model(ids[:, at : at + n], past_key_values=cache, use_cache=True).logits)
            at += n
    return torch.cat(parts, 1)


def parse() -> Namespace:
    cuda = torch.cuda.is_available()
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--longest", type=int, default=131072 if cuda else 700, help="entries of a KV cache")
    parser.add_argument("--every", type=int, default=1 if cuda else 16, help="run every so-manieth case only")
    parser.add_argument("--first", type=int, default=0, help="the first case that is run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.manual_seed(arguments.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new tensors with NaN
    figures = [
        {**asdict(case), "error": error_of(case, arguments.longest, arguments.device)}
        for case in list(cases())[arguments.first :: arguments.every]
    ]
    torch.use_deterministic_algorithms(False)
    models = {family: logit_error(family, arguments.device) for family in CLASSES}

    groups: dict[tuple[str, int], list[float]] = defaultdict(list)
    for one in figures:
        groups[one["dtype"], one["dim"]].append(one["error"])
    rows = [
        line(f"{dtype}, dimension {dim}", errors, MOST_ERROR[dtype]) for (dtype, dim), errors in sorted(groups.items())
    ]
    rows += [line(f"{family}, logits", [error], MOST_LOGIT_ERROR) for family, error in models.items()]
    title = f"Triton kernel against float64, up to {arguments.longest:,} entries; full shares against DynamicCache"
    content = {"cases": figures, "logits": models}
    measure.report(title, ("what", "cases", "largest error", "allowed", ""), rows, content, arguments)
    sys.exit(any(row[-1] != "right" for row in rows))


def line(name: str, errors: list[float], allowed: float) -> tuple[str, ...]:
    right = all(error <= allowed for error in errors)  # false for NaN
    return name, str(len(errors)), f"{max(errors):.1e}", f"{allowed:g}", "right" if right else "WRONG"


if __name__ == "__main__":
    main()
