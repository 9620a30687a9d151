"""The result files of a synthetic experiment (records, budgets, profiles, ...), written without any model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from baklava.allocation.fitted import MAPPING, Grown
from baklava.analysis.summary import summarize
from baklava.budgets import Budgets
from baklava.evaluation import timings
from baklava.evaluation.measurements import COLUMNS as MEASURED
from baklava.evaluation.measurements import SCHEMA as MEASURED_SCHEMA
from baklava.evaluation.record_schema import SCHEMA
from baklava.experiment.jobs import SummarizeJob
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig
from baklava.search.trace import SCHEMA as TRACE_SCHEMA
from baklava.system.parquet import write_parquet

MODELS = {"tiny-llama": (6, 4), "tiny-qwen2": (8, 2)}  # layers, KV heads
TASKS = ("niah_multikey_1", "niah_single_1", "vt")
RATIOS = (0.3, 0.5, 0.7, 0.8, 0.9)
EVICTION = "streaming_llm"
N_SAMPLES = 64
CONTEXT = 1000
ENTRY_BYTES = 256

# Ratio at which each method loses half of the samples, per task.
_HALF = {"uniform": (0.45, 0.6, 0.55), "baklava": (0.78, 0.92, 0.85)}


def cell_records(
    scores: Iterable[float],
    *,
    model: str = "tiny-llama",
    task: str = "vt",
    allocator: str = "full",
    eviction: str | None = None,
    ratio: float = 0.0,
    **changed: object,
) -> pd.DataFrame:
    """Make records of one cell with a score per sample; `changed` replaces or adds columns."""
    scores = list(scores)
    n = len(scores)
    total = int(np.prod(MODELS.get(model, (2, 2)))) * CONTEXT
    kept = round((1 - ratio) * total)
    columns: dict[str, object] = {
        "model": model,
        "task": task,
        "allocator": allocator,
        "eviction": ("none" if allocator == "full" else EVICTION) if eviction is None else eviction,
        "ratio": float(ratio),
        "protocol": "question_agnostic",
        "seed": 0,
        "sample": np.arange(n),
        "length": 1024,
        "decoding": "grow",
        "context": [f"context {i}" for i in range(n)],
        "question": "",
        "turn": 0,
        "context_tokens": CONTEXT,
        "prediction": [f"answer {i}" for i in range(n)],
        "answers": [[f"answer {i}"] for i in range(n)],
        "group": "",
        "score": np.asarray(scores, dtype=float),
        "loss": np.nan,
        "kept_entries": kept,
        "total_entries": total,
        "kv_bytes": kept * ENTRY_BYTES,
        "kv_bytes_full": total * ENTRY_BYTES,
        "peak_kv_bytes": (kept + total // CONTEXT * 50) * ENTRY_BYTES,
        "seconds": 0.25,
        "failed": "",
    }
    return pd.DataFrame({**columns, **changed}, index=range(n))


def write_records(path: Path, records: pd.DataFrame, *, schema: int = SCHEMA) -> Path:
    table = pa.Table.from_pandas(records.drop(columns="seconds"), preserve_index=False)
    for name in {"loss", "score"} & set(records):  # keep NaN, which is not a missing value
        values = pa.array(records[name].to_numpy(), from_pandas=False)
        table = table.set_column(table.column_names.index(name), name, values)
    write_parquet(path, table, schema=schema)
    return path


def write_timings(path: Path, records: pd.DataFrame) -> Path:
    """Without columns of repetitions, as earlier versions wrote it, unless the records have them."""
    own = records[[name for name in timings.COLUMNS.names if name in records]]
    columns = {name: pa.array(own[name].to_numpy(), from_pandas=False) for name in own}  # keep NaN
    write_parquet(path, pa.table(columns), schema=timings.SCHEMA)
    return path


def experiment_records(seed: int = 0) -> pd.DataFrame:
    """Make records of 2 models x 3 tasks x (full + 2 methods x 5 ratios) x 64 samples, as hard in every cell."""
    random = np.random.default_rng(seed)
    frames = []
    for model in MODELS:
        for index, task in enumerate(TASKS):
            ease = random.random((N_SAMPLES, 4))  # four answers per sample, so scores are quarters
            frames.append(cell_records((ease < 0.98).mean(1), model=model, task=task))
            for allocator, half in _HALF.items():
                for ratio in RATIOS:
                    right = 0.98 / (1 + np.exp((ratio - half[index]) * 14))
                    scores = (ease < right).mean(1)
                    frames.append(cell_records(scores, model=model, task=task, allocator=allocator, ratio=ratio))
    records = pd.concat(frames, ignore_index=True)
    records["seconds"] = random.uniform(0.1, 0.4, len(records))
    return records


def write_experiment(layout: ExperimentPaths, seed: int = 0) -> None:
    """Write all records and timings files of the synthetic experiment."""
    for (model, task), rows in experiment_records(seed).groupby(["model", "task"]):
        write_records(layout.records(str(model), str(task)), rows)
        write_timings(layout.timings(str(model), str(task)), rows)


DEPTHS = (0.0, 0.5, 1.0)
LENGTHS = (512, 1024)


def write_needle_grid(layout: ExperimentPaths, model: str) -> None:
    """Write two samples per depth and length; uniform finds no needle in the middle of the longer text."""
    samples = [(length, depth) for length in LENGTHS for depth in DEPTHS] * 2
    groups = [f"length {length}, depth {depth:g}" for length, depth in samples]
    scores = {"full": [1.0] * len(samples), "baklava": [0.75] * len(samples)}
    scores["uniform"] = [float(sample != (1024, 0.5)) for sample in samples]
    cells = [("full", 0.0), *((allocator, ratio) for allocator in ("uniform", "baklava") for ratio in RATIOS)]
    frames = [
        cell_records(scores[allocator], model=model, task="needle_grid", allocator=allocator, ratio=ratio, group=groups)
        for allocator, ratio in cells
    ]
    records = pd.concat(frames, ignore_index=True)
    write_records(layout.records(model, "needle_grid"), records)
    write_timings(layout.timings(model, "needle_grid"), records)


def measurements(model: str) -> pd.DataFrame:
    """Make measurements of a device that does not report its peak; memory falls in proportion to the ratio."""
    cells = [("full", "none", 0.0), *((allocator, EVICTION, r) for allocator in ("uniform", "baklava") for r in RATIOS)]
    rows = [
        {
            "model": model,
            "allocator": allocator,
            "eviction": eviction,
            "ratio": ratio,
            "device": "cpu",
            "context": 1024,
            "batch": 2,
            "prefill_seconds": 0.5 - 0.1 * ratio,
            "first_token_seconds": 0.6 - 0.1 * ratio,
            "tokens_per_second": 100 + 50 * ratio,
            "peak_bytes": np.nan,
            "kv_bytes": round((1 - ratio) * 10 * 2**20),
        }
        for allocator, eviction, ratio in cells
    ]
    return pd.DataFrame(rows)


def write_measurements(layout: ExperimentPaths, model: str) -> None:
    table = pa.Table.from_pylist(measurements(model).to_dict("records"), schema=MEASURED)
    write_parquet(layout.measurements(model), table, schema=MEASURED_SCHEMA)


def write_results(layout: ExperimentPaths, config: ExperimentConfig) -> None:
    """Write all files up to the summary, for an experiment=demo that may have a needle grid and measurements."""
    write_experiment(layout)
    write_budgets(layout)
    write_profiles(layout)
    write_search_traces(layout)
    for model in MODELS:
        for _ in config.needle_grids:
            write_needle_grid(layout, model)
        if config.measure.enabled:
            write_measurements(layout, model)
    summarize(SummarizeJob.of(config, layout))


def importance(model: str) -> np.ndarray:
    """Draw importance `[n_layers, n_kv_heads]` with a few retrieval heads in the middle layers."""
    shape = MODELS[model]
    values = np.random.default_rng(len(model)).gamma(0.6, 0.15, shape)
    values[shape[0] // 2, 0] = 1.4
    values[shape[0] // 2 + 1, -1] = 1.1
    return values


def write_budgets(layout: ExperimentPaths) -> None:
    for model, shape in MODELS.items():
        for ratio in RATIOS:
            uniform = Budgets.uniform(n_layers=shape[0], n_kv_heads=shape[1], ratio=ratio, model=model)
            uniform.save(layout.budgets(model, "uniform", EVICTION, ratio))
            shares = _fill_water(importance(model), 1 - ratio)
            Budgets.from_shares(
                shares,
                ratio=ratio,
                model=model,
                allocator="baklava",
                parameters={"mapping": "baklava", "estimator": "eviction_shift", "slope": 2.0, "floor": 0.02},
                provenance={"loss": 0.2 + ratio / 10, "loss_uniform": 0.4 + ratio, "loss_full": 0.1},
            ).save(layout.budgets(model, "baklava", EVICTION, ratio))


def search_trace(model: str = "tiny-llama", n_trials: int = 16) -> pd.DataFrame:
    """Make the trace of a search in which only the estimator matters."""
    random = np.random.default_rng(len(model))
    frames = []
    for ratio in RATIOS:
        estimator = random.choice(["eviction_shift", "layer_cosine"], n_trials)
        floor = random.uniform(0, 0.08, n_trials)
        loss = 0.1 + 2.0 * (estimator == "layer_cosine") + random.uniform(0, 0.05, n_trials)
        loss[0] = 2.0 + ratio
        complete = np.arange(n_trials) % 3 == 0
        chosen = np.arange(n_trials) == np.where(complete, loss, np.inf).argmin()
        frames.append(
            pd.DataFrame(
                {
                    "model": model,
                    "allocator": "baklava",
                    "eviction": EVICTION,
                    "ratio": ratio,
                    "trial": np.arange(n_trials),
                    "move": MAPPING,
                    "loss": loss,
                    "n_prompts": np.where(complete, 20, 5),
                    "early_loss": loss,
                    "complete": complete,
                    "chosen": chosen,
                    "loss_full": 0.05,
                    "held_back": np.nan,
                    "estimator": estimator,
                    "pool": "mean",
                    "floor": floor,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def growth_trace(model: str = "tiny-llama") -> pd.DataFrame:
    """Make the trace of budgets that grew."""
    rows = []
    for ratio in RATIOS:
        grown = Grown(np.ones(1), 0.0, 2.0 + ratio, ratio / 10, 2.1 + ratio, ratio / 8, n_prompts=20)
        rows += [{**asdict(trial), "trial": trial.number} for trial in grown.trials(ratio)]
    frame = pd.DataFrame(rows).drop(columns=["number", "parameters"])
    return frame.assign(model=model, allocator="baklava", eviction=EVICTION)


def write_search_traces(layout: ExperimentPaths) -> None:
    for model in MODELS:
        table = pa.Table.from_pylist(growth_trace(model).to_dict("records"))  # keeps NaN, as the search does
        write_parquet(layout.search_trace(model, "baklava", EVICTION), table, schema=TRACE_SCHEMA)


def _fill_water(weights: np.ndarray, mean: float) -> np.ndarray:
    low, high = 0.0, 1e6
    for _ in range(200):
        scale = (low + high) / 2
        low, high = (scale, high) if np.minimum(1, 0.02 + scale * weights).mean() < mean else (low, scale)
    return np.minimum(1, 0.02 + low * weights)


def write_profiles(layout: ExperimentPaths, n_prompts: int = 4) -> None:
    from baklava.importance.profile import Profile

    for model, (n_layers, n_kv_heads) in MODELS.items():
        random = np.random.default_rng(n_layers)
        heads = np.repeat(importance(model), 8 // n_kv_heads, axis=1)
        noise = random.lognormal(0, 0.2, (3, n_prompts, *heads.shape))
        names = ("value_output_cosine", "eviction_shift_cosine", "eviction_shift")
        by_estimator = {name: (heads * noise[i]).astype(np.float32) for i, name in enumerate(names)}
        by_estimator["value_output_cosine"] = 1 - by_estimator["value_output_cosine"] / 3
        Profile(
            model=model,
            n_kv_heads=n_kv_heads,
            head_importance=by_estimator,
            layer_importance=random.uniform(0.1, 0.6, (n_prompts, n_layers)).astype(np.float32),
        ).save(layout.profile(model))
