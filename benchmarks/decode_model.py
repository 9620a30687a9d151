"""A whole model's decoding with a budgeted cache, next to `DynamicCache`: tokens per second and bytes.

    python benchmarks/decode_model.py --json benchmarks/results/decode_model-cpu.json
    python benchmarks/decode_model.py --model llama-3-8b --contexts 8192 32768 --batches 1 8   # on a GPU

Weights are random: neither memory nor speed depends on them.
"""

from __future__ import annotations

import statistics
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any

import measure
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, PreTrainedModel, Qwen2Config

from baklava import BudgetedCache, Budgets

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


@torch.inference_mode()
def decode(model: PreTrainedModel, cache: Any, context: torch.Tensor, n_tokens: int) -> dict[str, float]:
    """Prefill, then `n_tokens` single steps; the median step counts."""
    cuda = model.device.type == "cuda"
    started = time.perf_counter()
    token = model(context, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)
    if cuda:
        torch.cuda.synchronize()
    prefill = time.perf_counter() - started
    steps = []
    for _ in range(n_tokens):
        started = time.perf_counter()
        token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        if cuda:
            torch.cuda.synchronize()
        steps.append(time.perf_counter() - started)
    if isinstance(cache, BudgetedCache):
        n_bytes = int(cache.row_bytes().sum())
    else:
        n_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return {
        "prefill_seconds": prefill,
        "tokens_per_second": context.shape[0] / statistics.median(steps),
        "context_kv_bytes": n_bytes,
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="small-llama")
    parser.add_argument("--contexts", type=int, nargs="+", default=[8192])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.5, 0.7, 0.9])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--tokens", type=int, default=24)
    arguments = measure.parse(parser)
    config = SHAPES[arguments.model]
    with torch.device(arguments.device):
        model = AutoModelForCausalLM.from_config(config, dtype=measure.DTYPES[arguments.dtype]).eval()
    rows, figures = [], []
    for batch in arguments.batches:
        for length in arguments.contexts:
            context = torch.randint(config.vocab_size, (batch, length), device=arguments.device)
            model.set_attn_implementation("sdpa")
            results = {"DynamicCache, sdpa": decode(model, DynamicCache(config=config), context, arguments.tokens)}
            model.set_attn_implementation("baklava")
            for ratio in arguments.ratios:
                size = {"n_layers": config.num_hidden_layers, "n_kv_heads": config.num_key_value_heads}
                kinds = {"even": Budgets.uniform(**size, ratio=ratio)}
                if ratio:
                    kinds["skewed"] = skewed(config, ratio)
                for kind, budgets in kinds.items():
                    cache = BudgetedCache(config, budgets)
                    results[f"r = {ratio:g}, {kind}"] = decode(model, cache, context, arguments.tokens)
            plain = results["DynamicCache, sdpa"]
            for name, one in results.items():
                speed = one["tokens_per_second"] / plain["tokens_per_second"]
                size_ratio = one["context_kv_bytes"] / plain["context_kv_bytes"]
                rows.append(
                    (
                        str(batch),
                        f"{length:,}",
                        name,
                        f"{one['prefill_seconds']:.2f}",
                        f"{one['tokens_per_second']:.1f}",
                        f"{speed:.2f}x",
                        f"{one['context_kv_bytes'] / 2**20:.1f}",
                        f"{size_ratio:.3f}",
                    )
                )
                figures.append({"batch": batch, "context": length, "cache": name, **one, "speed": speed})
    columns = ("batch", "context", "cache", "prefill s", "tokens/s", "speed", "context KV MiB", "of full")
    measure.report(f"Decoding, {arguments.model}, {arguments.dtype}", columns, rows, {"decoding": figures}, arguments)


if __name__ == "__main__":
    main()
