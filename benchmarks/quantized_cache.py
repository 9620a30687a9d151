"""transformers' QuantizedCache beside a BudgetedCache that keeps every entry at as many bits: score, bytes, seconds.

    pip install --no-deps hqq termcolor   # or optimum-quanto==0.2.7 and a C++ compiler, for --backend quanto
    python benchmarks/quantized_cache.py --backend hqq --json benchmarks/results/quantized_cache-cpu.json
    python benchmarks/quantized_cache.py --backend hqq --dtype bfloat16 \
        --budgets results/EXPERIMENT/budgets/tiny-llama/baklava_bits/streaming_llm/*.json

The same samples in the same tokens, decoded greedily. Both read the context exactly and quantise what they keep of it;
the question comes after it. QuantizedCache has its defaults: groups of 64 numbers, the last 128 tokens exact. Bytes are
all that a cache stores of the context, scales and zero points included, in parts of the full cache's.
Seconds are CPU seconds of this process per token of an answer where it runs on a CPU, without reading the context.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import measure
import torch
from transformers import Cache, DynamicCache, QuantizedCache

from baklava import BudgetedCache, Budgets
from baklava.evaluation.prompt import Prompts
from baklava.experiment.components import ModelConfig
from baklava.experiment.settings import EvaluateConfig
from baklava.models.load import LoadedModel, load_model
from baklava.tasks import NeedleInHaystack, VariableTracking

TASKS = (
    NeedleInHaystack(name="niah_single_1"),
    NeedleInHaystack(name="niah_multivalue", n_values=4),
    NeedleInHaystack(name="niah_multiquery", n_keys=4, n_queries=4),
    VariableTracking(name="vt"),
)
SEED = 2026


def stored_bytes(stored: Any) -> int:
    """Bytes of all tensors in `stored`, those inside quantised ones instead of what these stand for."""
    if isinstance(stored, torch.Tensor):
        inner = stored.__tensor_flatten__()[0] if hasattr(stored, "__tensor_flatten__") else ()
        return sum(stored_bytes(getattr(stored, name)) for name in inner) if inner else stored.nbytes
    if isinstance(stored, dict):
        stored = list(stored.values())
    return sum(map(stored_bytes, stored)) if isinstance(stored, list | tuple) else 0


def cache_bytes(cache: Cache) -> int:
    if isinstance(cache, BudgetedCache):
        return cache.kv_bytes()
    names = ("keys", "values", "_quantized_keys", "_quantized_values")
    return sum(stored_bytes(getattr(layer, name, None)) for layer in cache.layers for name in names)


@torch.inference_mode()
def answer(
    loaded: LoadedModel,
    cache: Cache,
    context: list[int],
    question: list[int],
    n_tokens: int,
    clock: Callable[[], float],
) -> tuple[str, int, float]:
    """The answer to a question about a context, the bytes that are stored of it, and seconds per token."""
    model = loaded.model
    device = model.device
    stop = model.generation_config.eos_token_id
    stops = {*(stop if isinstance(stop, list) else [stop]), loaded.tokenizer.eos_token_id}
    if isinstance(cache, BudgetedCache):
        cache.prefill(model, torch.tensor([context], device=device))
    else:
        model(torch.tensor([context], device=device), past_key_values=cache, logits_to_keep=1)
    n_bytes = cache_bytes(cache)
    tokens: list[int] = []
    following, seconds = question, []
    while len(tokens) < n_tokens and not (tokens and tokens[-1] in stops):
        started = clock()
        logits = model(torch.tensor([following], device=device), past_key_values=cache, logits_to_keep=1).logits
        following = [int(logits[0, -1].argmax())]
        seconds.append(clock() - started)
        tokens += following
    return loaded.decode(tokens), n_bytes, median(seconds[1:] or seconds)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llama", help="a reference model, or the path of a model")
    parser.add_argument("--backend", choices=("quanto", "hqq"), default="hqq")
    parser.add_argument("--samples", type=int, default=8, help="of each task")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--bits", type=int, nargs="+", choices=(4, 2), default=(4, 2))
    parser.add_argument(
        "--budgets", type=Path, nargs="*", default=(), help="files of budgets, for other caches of ours"
    )
    parser.add_argument("--eviction", default="streaming_llm", help="the policy of --budgets")
    arguments = measure.parse(parser)
    path = measure.model_path(arguments.model)
    loaded = load_model(ModelConfig(name="model", path=path, dtype=arguments.dtype, device=arguments.device))
    model, config = loaded.model, loaded.model.config
    everything = Budgets.uniform(n_layers=loaded.n_layers, n_kv_heads=loaded.n_kv_heads, ratio=0.0)

    def theirs(bits: int) -> Cache:
        return QuantizedCache(arguments.backend, config, nbits=bits)

    makes: dict[str, Callable[[], Cache]] = {"full": lambda: DynamicCache(config=config)}
    for bits in arguments.bits:
        makes[f"QuantizedCache, {bits} bits"] = partial(theirs, bits)
        makes[f"BudgetedCache, {bits} bits"] = partial(BudgetedCache, config, everything, bits=bits)
    for file in arguments.budgets:
        make = partial(BudgetedCache, model, Budgets.load(file), arguments.eviction)
        makes[f"BudgetedCache, {file.parent.parent.name} {file.stem}"] = make
    try:
        theirs(4)
    except ImportError:
        package = {"quanto": "optimum-quanto", "hqq": "hqq termcolor"}[arguments.backend]
        raise SystemExit(f"--backend {arguments.backend} needs its package: pip install --no-deps {package}") from None
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    results: dict[str, list[tuple[float, int, float]]] = {name: [] for name in makes}
    by_task: dict[str, dict[str, float]] = {}
    for task in TASKS:
        prompts = Prompts(
            "model", loaded.tokenizer, task, EvaluateConfig(n_samples=arguments.samples, length=arguments.length)
        )
        for index in range(arguments.samples):
            sample = task.sample(
                split="evaluation", seed=SEED, index=index, length=arguments.length, count_tokens=loaded.count_tokens
            )
            tokens = prompts.tokens(sample)
            for kind, make in makes.items():
                model.set_attn_implementation("baklava" if kind.startswith("Budgeted") else "sdpa")
                text, n_bytes, seconds = answer(
                    loaded, make(), tokens.context, tokens.question, sample.max_new_tokens, clock
                )
                results[kind].append((task.score(text, sample.answers), n_bytes, seconds))
        by_task[task.name] = {
            kind: fmean(score for score, *_ in some[-arguments.samples :]) for kind, some in results.items()
        }
    figures = []
    for kind, some in results.items():
        scores, sizes, seconds = zip(*some, strict=True)
        figures.append(
            {
                "cache": kind,
                "score": fmean(scores),
                **{task: scores_of[kind] for task, scores_of in by_task.items()},
                "bytes_over_full": sum(sizes) / sum(size for _, size, _ in results["full"]),
                "ms_per_token": 1e3 * median(seconds),
            }
        )
    columns = list(figures[0])
    table = [[str(row["cache"]), *(f"{row[name]:.3f}" for name in columns[1:])] for row in figures]
    title = f"{arguments.model}, {len(results['full'])} samples of {arguments.length} tokens, {arguments.backend}"
    measure.report(title, columns, table, {"caches": figures}, arguments)


if __name__ == "__main__":
    main()
