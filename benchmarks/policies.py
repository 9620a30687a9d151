"""What each eviction policy adds to a prefill, in units of the plain model's (`sdpa`, `DynamicCache`).

    python benchmarks/policies.py --json benchmarks/results/policies-cpu.json
    python benchmarks/policies.py --layers 6 --contexts 1024 2048 4096 8192 --policies snapkv lava --repeats 7

A prefill reads the context in one pass and compresses it; policies that have it repeated (`kvzip`) read it again.
Weights are random: speed does not depend on them. With `--clock cpu` the processor time of this process counts, for
machines that do other things too; use one thread then.
"""

from __future__ import annotations

import statistics
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence

import measure
import torch
from decode_model import SHAPES
from transformers import DynamicCache

from baklava import BudgetedCache, Budgets
from baklava.eviction import NAMES, policy_named
from baklava.inference.batch import compress_rows, prefill
from baklava.models.load import LoadedModel

PLAIN = "sdpa, DynamicCache"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
NAMED = tuple({policy_named(name): name for name in NAMES}.values())  # those that differ


class Instructed(LoadedModel):
    """A model without a tokenizer that can be told to repeat: an instruction has as many tokens as words."""

    def encode(self, text: str, *, begin: bool = False) -> list[int]:
        return [1] * len(text.split())


def plain(loaded: LoadedModel, context: Sequence[int]) -> None:
    model = loaded.model
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([context], device=loaded.device)
    model(ids, past_key_values=DynamicCache(config=model.config), use_cache=True, logits_to_keep=1)


def compressed(loaded: LoadedModel, context: Sequence[int], budgets: Budgets, name: str) -> None:
    model = loaded.model
    model.set_attn_implementation("baklava")
    policy = policy_named(name)
    if policy.repeats:  # which a BudgetedCache by itself cannot
        compress_rows(loaded, prefill(loaded, [context], [policy]), [budgets], [policy])
        return
    cache = BudgetedCache(model, budgets, policy, compress_above=0)
    ids = torch.tensor([context], device=loaded.device)
    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", "--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--layers", type=int, help="only so many layers (a quick run)")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--policies", choices=NAMES, nargs="+", default=NAMED, metavar="NAME")
    parser.add_argument("--ratio", type=float, default=0.7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = measure.parse(parser)
    config = SHAPES[arguments.model]
    config.num_hidden_layers = arguments.layers or config.num_hidden_layers
    loaded = Instructed(**vars(measure.load_random(arguments.model, config, arguments)))
    budgets = Budgets.uniform(
        n_layers=config.num_hidden_layers, n_kv_heads=config.num_key_value_heads, ratio=arguments.ratio
    )
    rows, figures = [], []
    for length in arguments.contexts:
        context = torch.randint(config.vocab_size, (length,)).tolist()
        candidates: dict[str, Callable[[], None]] = {PLAIN: lambda c=context: plain(loaded, c)}
        for name in arguments.policies:
            candidates[name] = lambda c=context, n=name: compressed(loaded, c, budgets, n)
        with torch.inference_mode():
            times = measure.rounds(
                candidates,
                repeats=arguments.repeats,
                device=arguments.device,
                warm_up=1,
                clock=CLOCKS[arguments.clock],
            )
        for name, milliseconds in times.items():
            ratios = [ours / dense for ours, dense in zip(milliseconds, times[PLAIN], strict=True)]  # round by round
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
