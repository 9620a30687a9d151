"""What is alive during prefill, layer by layer: the compressed caches so far and one layer's full KV, not all of it.

    python benchmarks/prefill_memory.py --json benchmarks/results/prefill_memory-cpu.json

Counts the storages of all live tensors but the weights at the moment each layer's attention has been computed.
"""

from __future__ import annotations

import gc
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import Any

import measure
import torch
from decode_model import SHAPES
from transformers import AutoModelForCausalLM, DynamicCache

from baklava import BudgetedCache, Budgets


def live_bytes(but: set[int]) -> int:
    """Bytes of the storages of live tensors, those in `but` left out."""
    storages = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of objects that warn when they are looked at
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    for tensor in tensors:
        if tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(size for place, size in storages.items() if place not in but)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="small-llama")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--ratio", type=float, default=0.8)
    arguments = measure.parse(parser)
    config = SHAPES[arguments.model]
    with torch.device(arguments.device):
        model = AutoModelForCausalLM.from_config(config, dtype=measure.DTYPES[arguments.dtype]).eval()
    model.set_attn_implementation("baklava")
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    context = torch.randint(config.vocab_size, (1, arguments.context), device=arguments.device)
    budgets = Budgets.uniform(
        n_layers=config.num_hidden_layers, n_kv_heads=config.num_key_value_heads, ratio=arguments.ratio
    )
    alive: dict[str, list[int]] = {}
    caches: dict[str, Callable[[], Any]] = {
        "DynamicCache": lambda: DynamicCache(config=config),
        "BudgetedCache": lambda: BudgetedCache(config, budgets),
    }
    for name, make in caches.items():
        gc.collect()
        alive[name] = []

        def observer(*_: Any, seen: list[int] = alive[name], **__: Any) -> None:
            seen.append(live_bytes(weights))

        with torch.inference_mode():
            model(context, past_key_values=make(), use_cache=True, logits_to_keep=1, observer=observer)
    itemsize = measure.DTYPES[arguments.dtype].itemsize
    head_dim = config.hidden_size // config.num_attention_heads
    layer = 2 * config.num_key_value_heads * head_dim * arguments.context * itemsize
    mib = [f"{one / 2**20:.1f}" for one in (layer, layer * (1 - arguments.ratio))]
    rows = [
        (str(i), *(f"{alive[name][i] / 2**20:.1f}" for name in caches), f"{(i * layer) / 2**20:.1f}")
        for i in range(config.num_hidden_layers)
    ]
    # From the second layer on: the residual stream comes into being between the first and the second.
    growth = {name: (some[-1] - some[1]) / (len(some) - 2) / layer for name, some in alive.items()}
    title = (
        f"Live MiB besides the weights after each layer's attention, {arguments.context:,} tokens, "
        f"r = {arguments.ratio:g}; one layer's full KV is {mib[0]}, compressed {mib[1]}; growth per layer, "
        "in full layers: " + ", ".join(f"{name} {one:.3f}" for name, one in growth.items())
    )
    figures = {"alive": alive, "layer_bytes": layer, "growth_in_full_layers": growth}
    measure.report(title, ("layer", *caches, "full KV before it"), rows, figures, arguments)


if __name__ == "__main__":
    main()
