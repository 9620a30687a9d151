"""Questions about one context against as many contexts: each context is read and compressed once.

    python benchmarks/many_questions.py --json benchmarks/results/many_questions-cpu.json

The full cache, and uniform budgets at r = 0.7 beside it. `cost` is the time of all questions about one context in
parts of that of as many samples with a context each. Records are compared with those of the same questions, asked one
by one.
"""

from __future__ import annotations

import statistics
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import partial

import measure
from sweep import Records, swept

from baklava.budgets import Budgets
from baklava.evaluation.engine import Engine
from baklava.evaluation.samples import CellSpec
from baklava.eviction import POLICIES
from baklava.experiment.components import ModelConfig
from baklava.experiment.settings import EvaluateConfig
from baklava.models.load import load_model
from baklava.tasks import NeedleInHaystack, Sample


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llama", help="a reference model, or the path of a model")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--eviction", choices=POLICIES, default="keydiff")
    arguments = measure.parse(parser)
    loaded = load_model(
        ModelConfig(
            name="model", path=measure.model_path(arguments.model), dtype=arguments.dtype, device=arguments.device
        )
    )
    n = arguments.questions
    settings = EvaluateConfig(n_samples=n, length=arguments.length)
    shape = {"n_layers": loaded.n_layers, "n_kv_heads": loaded.n_kv_heads}
    budgets = Budgets.uniform(**shape, ratio=0.7)
    specs = [
        CellSpec.full(**shape),
        CellSpec("uniform", arguments.eviction, 0.7, budgets, POLICIES[arguments.eviction]()),
    ]

    def draw(task: NeedleInHaystack) -> list[Sample]:
        return [
            task.sample(split="evaluation", seed=0, index=i, length=arguments.length, count_tokens=loaded.count_tokens)
            for i in range(n)
        ]

    one = NeedleInHaystack(name="questions", n_keys=n, n_questions=n, max_new_tokens=16)
    many = NeedleInHaystack(name="questions", n_keys=n, max_new_tokens=16)
    engine = Engine(loaded, one, settings)
    samples = {"one context": draw(one), "as many contexts": draw(many)}
    rows, figures = [], []
    for n_cells in (1, 2):
        cells = specs[:n_cells]

        def together(some: Sequence[Sample], cells: Sequence[CellSpec] = cells) -> Records:
            return swept(engine, some, cells)

        times = measure.rounds(
            {name: partial(together, some) for name, some in samples.items()},
            repeats=arguments.repeats,
            device=arguments.device,
        )
        costs = [a / b for a, b in zip(times["one context"], times["as many contexts"], strict=True)]
        alone: Records = {}
        for sample in samples["one context"]:
            alone |= together([sample])
        found = {
            "cells": n_cells,
            **{f"{name.replace(' ', '_')}_ms": statistics.median(some) for name, some in times.items()},
            "cost": statistics.median(costs),
            "lowest": min(costs),
            "highest": max(costs),
            "records_equal": together(samples["one context"]) == alone,
        }
        figures.append(found)
        milliseconds = (f"{statistics.median(some):.0f}" for some in times.values())
        equal = "equal" if found["records_equal"] else "DIFFERENT"
        rows.append(
            (str(n_cells), *milliseconds, *(f"{found[key]:.3f}" for key in ("cost", "lowest", "highest")), equal)
        )
    title = f"{n} questions of {arguments.length:,} tokens, {arguments.model}, {arguments.eviction}"
    columns = ("cells", "one context, ms", f"{n} contexts, ms", "cost", "lowest", "highest", "records")
    measure.report(title, columns, rows, {"figures": figures}, arguments)


if __name__ == "__main__":
    main()
