"""What a prefill costs under each eviction policy, in units of the plain model's (`sdpa`, `DynamicCache`).

    python benchmarks/prefill.py --json benchmarks/results/prefill-cpu.json
    python benchmarks/prefill.py --layers 6 --contexts 1024 2048 4096 8192 --repeats 7

A prefill reads the context in one pass and compresses it. Weights are random: speed does not depend on them. With
`--clock cpu` the processor time of this process counts, for machines that do other things too; use one thread then.
"""

from __future__ import annotations

import statistics
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import Any

import measure
import torch
from decode_model import SHAPES
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from baklava import BudgetedCache, Budgets
from baklava.eviction import NAMES, POLICIES

PLAIN = "sdpa, DynamicCache"
READ_ONCE = [name for name, policy in POLICIES.items() if not policy().repeats]  # kvzip's prefill is two
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def prefill(model: PreTrainedModel, context: torch.Tensor, attention: str, make: Callable[[], Any]) -> None:
    model.set_attn_implementation(attention)
    model(context, past_key_values=make(), use_cache=True, logits_to_keep=1)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", "--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--layers", type=int, help="only so many layers (a quick run)")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--policies", choices=NAMES, nargs="+", default=READ_ONCE)
    parser.add_argument("--ratio", type=float, default=0.7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = measure.parse(parser)
    config = SHAPES[arguments.model]
    config.num_hidden_layers = arguments.layers or config.num_hidden_layers
    with torch.device(arguments.device):
        model = AutoModelForCausalLM.from_config(config, dtype=measure.DTYPES[arguments.dtype]).eval()
    budgets = Budgets.uniform(
        n_layers=config.num_hidden_layers, n_kv_heads=config.num_key_value_heads, ratio=arguments.ratio
    )
    rows, figures = [], []
    for length in arguments.contexts:
        context = torch.randint(config.vocab_size, (1, length), device=arguments.device)
        candidates = {PLAIN: lambda c=context: prefill(model, c, "sdpa", lambda: DynamicCache(config=config))}
        for policy in arguments.policies:
            candidates[policy] = lambda c=context, p=policy: prefill(
                model, c, "baklava", lambda: BudgetedCache(model, budgets, p, compress_above=0)
            )
        with torch.inference_mode():
            times = measure.rounds(
                candidates,
                repeats=arguments.repeats,
                device=arguments.device,
                warm_up=1,
                clock=CLOCKS[arguments.clock],
            )
        for name, milliseconds in times.items():
            ratios = [ours / plain for ours, plain in zip(milliseconds, times[PLAIN], strict=True)]  # round by round
            median, lowest, highest = statistics.median(ratios), min(ratios), max(ratios)
            ms = statistics.median(milliseconds)
            rows.append((f"{length:,}", name, f"{ms:.0f}", f"{median:.2f}", f"{lowest:.2f} to {highest:.2f}"))
            figures.append(
                {"context": length, "prefill": name, "ms": ms, "of_plain": median, "lowest": lowest, "highest": highest}
            )
    title = (
        f"Prefill, {arguments.model}, {config.num_hidden_layers} layers, {arguments.dtype}, r = {arguments.ratio:g}, "
        f"median of {arguments.repeats} rounds"
    )
    columns = ("context", "prefill", "ms", "of the plain model's", "range")
    measure.report(title, columns, rows, {"prefill": figures}, arguments)


if __name__ == "__main__":
    main()
