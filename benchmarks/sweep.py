"""A sweep of methods and ratios: the engine, against the same cells one at a time, each with its own prefill.

    python benchmarks/sweep.py --json benchmarks/results/sweep-cpu.json

Six eviction policies at six ratios, uniform budgets, a reference model. `speedup`, and whether the records are equal;
and the cost of more cells for the same samples, in units of one cell's.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import measure

from baklava.budgets import Budgets
from baklava.evaluation.engine import Engine
from baklava.evaluation.record_schema import Record
from baklava.evaluation.samples import CellSpec
from baklava.eviction import POLICIES
from baklava.experiment.components import ModelConfig
from baklava.experiment.settings import EvaluateConfig
from baklava.models.load import LoadedModel, load_model
from baklava.tasks import NeedleInHaystack, Sample

POLICIES_SWEPT = ("streaming_llm", "snapkv", "h2o", "tova", "knorm", "keydiff")
RATIOS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
CURVE = (1, 6, 36, 72)
TURN = 16  # samples
TASK = NeedleInHaystack(name="niah_multikey_1", n_keys=4)

Records = dict[tuple[int, str], Record]


def cells(loaded: LoadedModel, ratios: Sequence[float], policies: Sequence[str] = POLICIES_SWEPT) -> list[CellSpec]:
    shape = {"n_layers": loaded.n_layers, "n_kv_heads": loaded.n_kv_heads}
    return [
        CellSpec("uniform", name, ratio, Budgets.uniform(**shape, ratio=ratio), POLICIES[name]())
        for ratio in ratios
        for name in policies
    ]


def swept(engine: Engine, samples: Sequence[Sample], some: Sequence[CellSpec]) -> Records:
    """Records of all samples and cells, without the seconds."""
    labels = {cell.identify(engine.loaded.name, engine.task.name, engine.settings): cell.label for cell in some}
    return {
        (record.sample, labels[record.cell]): replace(record, seconds=0.0)
        for records in engine.answer(engine.encode(sample, some) for sample in samples)
        for record in records
    }


def timed(engine: Engine, samples: Sequence[Sample], some: Sequence[CellSpec]) -> tuple[float, Records]:
    started = time.perf_counter()
    records = swept(engine, samples, some)
    return time.perf_counter() - started, records


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llama", help="a reference model, or the path of a model")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch-rows", type=int, default=EvaluateConfig.model_fields["batch_rows"].default)
    arguments = measure.parse(parser)
    loaded = load_model(
        ModelConfig(
            name="model", path=measure.model_path(arguments.model), dtype=arguments.dtype, device=arguments.device
        )
    )
    settings = EvaluateConfig(n_samples=arguments.samples, length=arguments.length, batch_rows=arguments.batch_rows)
    engine = Engine(loaded, TASK, settings)
    samples = [
        TASK.sample(split="evaluation", seed=0, index=i, length=arguments.length, count_tokens=loaded.count_tokens)
        for i in range(arguments.samples)
    ]
    all_cells = cells(loaded, RATIOS)
    swept(engine, samples[:4], all_cells)  # warm-up: batches as large as they will be
    seconds, together, alone_seconds, alone = 0.0, {}, 0.0, {}
    for start in range(0, len(samples), TURN):  # by turns, so that a machine that slows down slows both
        some = samples[start : start + TURN]
        one_seconds, records = timed(engine, some, all_cells)
        seconds += one_seconds
        together |= records
        for sample, cell in product(some, all_cells):  # prefilled for every cell
            one_seconds, records = timed(engine, [sample], [cell])
            alone_seconds += one_seconds
            alone |= records
    more = cells(loaded, [*RATIOS, *(ratio + 0.05 for ratio in RATIOS)])
    curve = {n: timed(engine, samples, more[:n])[0] for n in CURVE}
    speedup, equal = alone_seconds / seconds, together == alone
    rows = [
        ("engine", f"{len(all_cells)}", f"{seconds:.1f}", f"{speedup:.1f}x", "equal" if equal else "DIFFERENT"),
        ("one cell at a time", f"{len(all_cells)}", f"{alone_seconds:.1f}", "1x", ""),
        *(("engine", str(n), f"{one:.1f}", "", f"{one / curve[1]:.2f} of one cell's") for n, one in curve.items()),
    ]
    title = f"{arguments.samples} samples of {arguments.length:,} tokens, {arguments.model}"
    figures = {
        "speedup": speedup,
        "records_equal": equal,
        "seconds": {"engine": seconds, "one_at_a_time": alone_seconds},
        "curve": {str(n): one for n, one in curve.items()},
    }
    measure.report(title, ("how", "cells", "seconds", "speed", "records"), rows, figures, arguments)


if __name__ == "__main__":
    main()
