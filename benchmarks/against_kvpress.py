"""The same sweep with kvpress' presses and text pipeline, and with the engine.

    make test-kvpress   # builds the environment .venv-kvpress
    python benchmarks/against_kvpress.py --json benchmarks/results/against_kvpress-cpu.json

streaming_llm, snapkv and knorm at six ratios, uniform budgets, the same samples in the same tokens. kvpress needs
another release of transformers, so both cannot share a process: each side runs in one of its own, one after the other,
`--rounds` times, and times its work alone, from text to predictions; loading and a warm-up come before. The lowest time
of each side counts.

kvpress keeps `int(T * (1 - r))` entries per KV head, the engine `T * (1 - r)` per head on average: they may differ by
one entry. Scores are compared cell by cell, and by the paired interval of the mean difference over all cells.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from sweep import RATIOS, TASK, cells, swept

from baklava.analysis.bootstrap import Bootstrap
from baklava.evaluation.engine import Engine
from baklava.evaluation.samples import CellSpec
from baklava.experiment.components import ModelConfig
from baklava.experiment.settings import EvaluateConfig
from baklava.models import reference_model_path
from baklava.models.load import load_model
from baklava.tasks import Sample

SWEPT = ("streaming_llm", "snapkv", "knorm")


def with_kvpress(samples: Sequence[Sample], some: Sequence[CellSpec], arguments: Namespace) -> dict[str, Any]:
    """Seconds, and predictions by cell and sample, of a process in kvpress' environment."""
    job = {
        "model": str(reference_model_path(arguments.model)),
        "dtype": arguments.dtype,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "cells": [(cell.eviction, cell.ratio) for cell in some],
        "samples": [
            {
                "context": one.context,
                "question": one.question + one.answer_prefix,
                "max_new_tokens": one.max_new_tokens,
            }
            for one in samples
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "job.json"), Path(folder, "answers.json")
        given.write_text(json.dumps(job), encoding="utf-8")
        script = Path(__file__).with_name("kvpress_side.py")
        subprocess.run([arguments.kvpress_python, script, given, made], check=True)
        return json.loads(made.read_text(encoding="utf-8"))


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llama")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch-rows", type=int, default=EvaluateConfig.model_fields["batch_rows"].default)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kvpress-python", type=Path, default=Path(".venv-kvpress/bin/python"))
    arguments = measure.parse(parser)
    model = ModelConfig(
        name=arguments.model, path=f"reference:{arguments.model}", dtype=arguments.dtype, device=arguments.device
    )
    loaded = load_model(model)
    settings = EvaluateConfig(n_samples=arguments.samples, length=arguments.length, batch_rows=arguments.batch_rows)
    engine = Engine(loaded, TASK, settings)
    samples = [
        TASK.sample(split="evaluation", seed=0, index=i, length=arguments.length, count_tokens=loaded.count_tokens)
        for i in range(arguments.samples)
    ]
    some = [cell for name in SWEPT for cell in cells(loaded, RATIOS, (name,))]
    swept(engine, samples[:1], some)  # warm-up
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        started = time.perf_counter()
        records = swept(engine, samples, some)
        ours.append(time.perf_counter() - started)
        kvpress = with_kvpress(samples, some, arguments)
        theirs.append(kvpress["seconds"])
    scores = np.array([[records[one.index, cell.label].score for one in samples] for cell in some])
    other = np.array(
        [
            [TASK.score(text, one.answers) for text, one in zip(row, samples, strict=True)]
            for row in kvpress["predictions"]
        ]
    )
    mean = Bootstrap().mean((scores - other).mean(0), "against kvpress")  # samples are redrawn, each with all its cells
    speedup = min(theirs) / min(ours)
    rows = [
        (cell.label, f"{a:.3f}", f"{b:.3f}", f"{a - b:+.3f}")
        for cell, a, b in zip(some, scores.mean(1), other.mean(1), strict=True)
    ]
    rows.append(("all", f"{scores.mean():.3f}", f"{other.mean():.3f}", f"{mean.estimate:+.3f}"))
    rows.append(("seconds", f"{min(ours):.1f}", f"{min(theirs):.1f}", f"{speedup:.1f}x"))
    figures = {
        "speedup": speedup,
        "scores_equal_within_noise": bool(mean.low <= 0.0 <= mean.high),
        "mean_difference": mean._asdict(),
        "equal_scores": float((scores == other).mean()),
        "seconds": {"engine": ours, "kvpress": theirs},
        "cells": [
            {"cell": cell.label, "engine": float(a), "kvpress": float(b)}
            for cell, a, b in zip(some, scores.mean(1), other.mean(1), strict=True)
        ],
    }
    title = f"{arguments.samples} samples of {arguments.length:,} tokens, {arguments.model}"
    measure.report(title, ("cell", "engine", "kvpress", "difference"), rows, figures, arguments)


if __name__ == "__main__":
    main()
