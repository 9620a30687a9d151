"""A whole model's decoding with a budgeted cache, next to `DynamicCache`: tokens per second and bytes.

    python benchmarks/decode_model.py --json benchmarks/results/decode_model-cpu.json
    python benchmarks/decode_model.py --model llama-3-8b --contexts 8192 32768 --batches 1 8   # on a GPU

Weights are random: neither memory nor speed depends on them. One context is read, once with sdpa and a `DynamicCache`
and once as budgeted caches are, and its row is repeated as often as a batch asks for. `--fit` adds the largest batch of
the last context that one step can be decoded with.
"""

from __future__ import annotations

import copy
import gc
import statistics
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import measure
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, PreTrainedModel, Qwen2Config

from baklava import BudgetedCache, Budgets
from baklava.cache.prefill import ContextCache
from baklava.eviction import POLICIES

SHAPES: dict[str, Any] = {
    "small-llama": LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=8192,
        max_position_embeddings=262_144,
    ),
    "smollm2-135m": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49_152,
        max_position_embeddings=8192,
    ),
    "llama-3-8b": LlamaConfig(
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
        max_position_embeddings=262_144,
    ),
    "qwen2.5-7b": Qwen2Config(
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152_064,
        max_position_embeddings=262_144,
    ),
}


def skewed(config: Any, ratio: float) -> Budgets:
    """A third of the KV caches of each layer whole, as far as the total allows, the rest alike."""
    from decode_attention import shares

    one = shares(ratio, config.num_key_value_heads, skewed=True).shares
    return Budgets.from_shares(one.repeat(config.num_hidden_layers, 0), ratio=ratio)


def row_bytes(cache: Any) -> int:
    """Bytes of keys and values."""
    if isinstance(cache, BudgetedCache):
        return int(cache.row_bytes().sum())
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


class Reader:
    """One model and one context; caches of as many rows as asked for."""

    def __init__(self, model: PreTrainedModel, length: int):
        self.model = model
        self._ids = torch.randint(model.config.vocab_size, (1, length), device=model.device)
        self.prefills: dict[str, dict[str, float]] = {}
        self._context: Any = ContextCache(model.config, [POLICIES["streaming_llm"]()])
        self._read("budgeted", "baklava", self._context)

    def dynamic(self, batch: int) -> DynamicCache:
        cache = DynamicCache(config=self.model.config)
        self._read("DynamicCache", "sdpa", cache)
        if batch > 1:
            cache.batch_repeat_interleave(batch)
        return cache

    def budgeted(self, budgets: Budgets, batch: int) -> BudgetedCache:
        self.model.set_attn_implementation("baklava")
        return BudgetedCache.from_context(self.model.config, self._context, [budgets] * batch)

    def forget(self) -> None:
        """Free the full context that budgeted caches are made of."""
        self._context = None

    def _read(self, name: str, attention: str, cache: Any) -> None:
        self.model.set_attn_implementation(attention)
        before = reset_peak(self.model)
        started = time.perf_counter()
        self.model(self._ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self.prefills[name] = {"seconds": elapsed(self.model, started), "peak_bytes": peak(self.model) - before}


def reset_peak(model: PreTrainedModel) -> int:
    """Forget the highest memory; bytes in use now. 0 on a CPU, which does not count them."""
    if model.device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak(model: PreTrainedModel) -> int:
    return torch.cuda.max_memory_allocated() if model.device.type == "cuda" else 0


def elapsed(model: PreTrainedModel, started: float) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def decode(model: PreTrainedModel, cache: Any, batch: int, n_tokens: int) -> float:
    """Tokens per second; the median of `n_tokens` steps counts."""
    token = torch.zeros(batch, 1, dtype=torch.int64, device=model.device)
    steps = []
    for _ in range(n_tokens):
        started = time.perf_counter()
        token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        steps.append(elapsed(model, started))
    return batch / statistics.median(steps)


def largest_batch(model: PreTrainedModel, base: Any, start: int = 8) -> int:
    """The largest batch, within a sixteenth, that a step can be decoded with beside the cache `base` of one row."""
    model.set_attn_implementation("baklava" if isinstance(base, BudgetedCache) else "sdpa")
    low, high = 0, start
    while high < 4096 and does_fit(model, base, high):
        low, high = high, 2 * high
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if does_fit(model, base, middle) else (low, middle)
    return low


def does_fit(model: PreTrainedModel, base: Any, batch: int) -> bool:
    try:
        cache = copy.deepcopy(base)
        cache.batch_repeat_interleave(batch)
        decode(model, cache, batch, 1)
    except torch.OutOfMemoryError:
        return False
    finally:
        cache = None
        gc.collect()
        torch.cuda.empty_cache()
    return True


def kinds_of_budgets(config: Any, ratios: Sequence[float]) -> dict[str, Budgets]:
    size = {"n_layers": config.num_hidden_layers, "n_kv_heads": config.num_key_value_heads}
    found = {}
    for ratio in ratios:
        found[f"r = {ratio:g}, even"] = Budgets.uniform(**size, ratio=ratio)
        if ratio:
            found[f"r = {ratio:g}, skewed"] = skewed(config, ratio)
    return found


@torch.inference_mode()
def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="small-llama")
    parser.add_argument("--contexts", type=int, nargs="+", default=[8192])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.5, 0.7, 0.9])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--most-tokens", type=int, default=2**18, help="skip batches of more context tokens than this")
    parser.add_argument("--fit", action="store_true", help="the largest batch, too (on a GPU)")
    arguments = measure.parse(parser)
    config = SHAPES[arguments.model]
    with torch.device(arguments.device):
        model = AutoModelForCausalLM.from_config(config, dtype=measure.DTYPES[arguments.dtype]).eval()
    model(torch.zeros(1, 64, dtype=torch.int64, device=arguments.device))  # what is set up once is no prefill's
    rows, figures, prefills, largest = [], [], {}, {}
    all_budgets = kinds_of_budgets(config, arguments.ratios)
    for length in arguments.contexts:
        reader = Reader(model, length)
        for batch in arguments.batches:
            if batch * length > arguments.most_tokens:
                continue
            makes: dict[str, Callable[[], Any]] = {"DynamicCache, sdpa": partial(reader.dynamic, batch)}
            makes |= {name: partial(reader.budgeted, budgets, batch) for name, budgets in all_budgets.items()}
            plain: dict[str, float] = {}
            for name, make in makes.items():
                cache = make()
                one = {"context_kv_bytes": row_bytes(cache)}
                one["tokens_per_second"] = decode(model, cache, batch, arguments.tokens)
                del cache
                plain = plain or one  # the first is the full cache
                speed = one["tokens_per_second"] / plain["tokens_per_second"]
                of_full = one["context_kv_bytes"] / plain["context_kv_bytes"]
                mib = f"{one['context_kv_bytes'] / 2**20:.1f}"
                tokens = f"{one['tokens_per_second']:.1f}"
                rows.append((str(batch), f"{length:,}", name, tokens, f"{speed:.2f}x", mib, f"{of_full:.3f}"))
                figures.append({"batch": batch, "context": length, "cache": name, **one, "speed": speed})
        prefills[length] = reader.prefills
    if arguments.fit:
        bases = {name: reader.budgeted(budgets, 1) for name, budgets in all_budgets.items()}
        reader.forget()
        largest = {name: largest_batch(model, base) for name, base in bases.items()}
        bases.clear()
        largest["DynamicCache, sdpa"] = largest_batch(model, reader.dynamic(1))
    columns = ("batch", "context", "cache", "tokens/s", "speed", "context KV MiB", "of full")
    print(f"prefill of one row: {prefills}\nlargest batch at {arguments.contexts[-1]:,} tokens: {largest}")
    content = {"decoding": figures, "prefill": prefills, "largest_batch": largest}
    measure.report(f"Decoding, {arguments.model}, {arguments.dtype}", columns, rows, content, arguments)


if __name__ == "__main__":
    main()
