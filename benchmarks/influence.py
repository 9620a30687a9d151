"""What a step of growth costs, however many KV caches there are: the influence of one prompt against its prefill.

    python benchmarks/influence.py --repeats 5 --json benchmarks/results/influence-cpu.json

Llamas with random weights, from 24 to 1,024 KV caches; `ratio` is the median, over rounds, of the two times of one
round. A search that probes each KV cache by itself reads the continuation as often as there are KV caches.
"""

from __future__ import annotations

import statistics
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from functools import partial

import measure
import torch
from transformers import LlamaConfig

from baklava.budgets import Budgets
from baklava.eviction import POLICIES
from baklava.inference.batch import BatchState, prefill
from baklava.inference.influence import measure_influence
from baklava.models.load import LoadedModel

SHAPES = ((6, 4), (30, 3), (32, 8), (64, 16))  # layers, KV heads
HEAD_DIM = 32
VOCABULARY = 4096
RATIO = 0.9


def build(n_layers: int, n_kv_heads: int, arguments: Namespace) -> LoadedModel:
    hidden_size = 2 * n_kv_heads * HEAD_DIM
    config = LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=2 * n_kv_heads,
        num_key_value_heads=n_kv_heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=262_144,
    )
    return measure.load_random(f"{n_layers} x {n_kv_heads}", config, arguments)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--continuation", type=int, default=48, help="tokens of question and answer")
    parser.add_argument("--eviction", choices=POLICIES, default="keydiff")
    arguments = measure.parse(parser)
    n = arguments.continuation
    ids = torch.randint(VOCABULARY, (arguments.context + n,)).tolist()
    context, question, answer = ids[:-n], ids[-n : -n // 2], ids[-n // 2 :]
    rows, figures = [], []
    for n_layers, n_kv_heads in SHAPES:
        loaded = build(n_layers, n_kv_heads, arguments)
        policy = POLICIES[arguments.eviction]()
        budgets = Budgets.uniform(n_layers=n_layers, n_kv_heads=n_kv_heads, ratio=RATIO)
        prefilled: BatchState = prefill(loaded, [context], [policy])
        times = measure.rounds(
            {
                "prefill": partial(prefill, loaded, [context], [policy]),
                "influence": partial(measure_influence, loaded, prefilled, budgets, policy, question, answer),
            },
            repeats=arguments.repeats,
            device=arguments.device,
        )
        ratios = [one / other for one, other in zip(times["influence"], times["prefill"], strict=True)]
        found = {
            "kv_caches": n_layers * n_kv_heads,
            "prefill_ms": statistics.median(times["prefill"]),
            "influence_ms": statistics.median(times["influence"]),
            "ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
        figures.append(found)
        shape = f"{n_layers} x {n_kv_heads} = {found['kv_caches']:,}"
        milliseconds = (f"{found[key]:.0f}" for key in ("prefill_ms", "influence_ms"))
        rows.append((shape, *milliseconds, *(f"{found[key]:.2f}" for key in ("ratio", "lowest", "highest"))))
    title = f"Influence and prefill, {arguments.context:,} + {n} tokens, {arguments.eviction}, {arguments.dtype}"
    columns = ("KV caches", "prefill ms", "influence ms", "ratio", "lowest", "highest")
    measure.report(title, columns, rows, {"figures": figures}, arguments)


if __name__ == "__main__":
    main()
