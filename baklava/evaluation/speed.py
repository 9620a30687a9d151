"""`baklava measure`: measures memory and speed of each cell by itself, apart from the accuracy runs."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from baklava.budgets import Decoding
from baklava.cache.budgeted import BudgetedCache
from baklava.decoder.length_dependent_rope import fixed_rotation
from baklava.evaluation.measurements import COLUMNS, SCHEMA
from baklava.evaluation.samples import CellSpec, cell_specs
from baklava.experiment.jobs import MeasureJob
from baklava.models.load import LoadedModel, load_model
from baklava.system.job_log import tell
from baklava.system.parquet import write_parquet
from baklava.system.progress import Progress


def measure(job: MeasureJob) -> None:
    """Write one row per cell with medians over the repeats; contexts are random tokens, the same for all cells."""
    settings = job.measure
    loaded = load_model(job.model)
    cells = cell_specs(job.cells, job.evictions, n_layers=loaded.n_layers, n_kv_heads=loaded.n_kv_heads)
    if any(cell.policy.repeats for cell in cells):
        tell(f"measure {job.model.name}: policies that read a context twice are left out; see the timings")
    cells = [cell for cell in cells if not cell.policy.repeats]
    random = torch.Generator().manual_seed(settings.seed)
    vocabulary = loaded.model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(vocabulary, (settings.batch, settings.context), generator=random).to(loaded.device)
    rows = []
    for cell in Progress(cells, desc=f"measure {job.model.name}", unit="cell"):
        runs = [_time_run(loaded, cell, ids, settings.tokens, job.decoding) for _ in range(settings.repeats + 1)]
        medians = {name: statistics.median(run[name] for run in runs[1:]) for name in runs[0]}  # without the warm-up
        rows.append(
            {
                "model": job.model.name,
                "allocator": cell.allocator,
                "eviction": cell.eviction,
                "ratio": cell.ratio,
                "device": _device_name(loaded.device),
                "context": settings.context,
                "batch": settings.batch,
                **medians,
                "kv_bytes": int(medians["kv_bytes"]),
            }
        )
    write_parquet(job.output, pa.Table.from_pylist(rows, schema=COLUMNS), schema=SCHEMA)


@torch.inference_mode()
def _time_run(loaded: LoadedModel, cell: CellSpec, ids: Tensor, n_tokens: int, decoding: Decoding) -> dict[str, Any]:
    """Prefill `ids` `[B, T]` and decode `n_tokens` per row; returns the measured columns."""
    cuda = loaded.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(loaded.device)
    before = torch.cuda.memory_allocated(loaded.device) if cuda else 0
    decoding = decoding if cell.budgets.ratio else "grow"  # the full cache keeps everything
    cache = BudgetedCache(loaded.model, cell.budgets, cell.policy, decoding, compress_above=0)

    def step(tokens: Tensor) -> Tensor:
        with fixed_rotation(loaded.model, ids.shape[1] + n_tokens):
            logits = loaded.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        if cuda:
            torch.cuda.synchronize(loaded.device)
        return logits

    started = time.perf_counter()
    logits = step(ids)
    prefill_seconds = time.perf_counter() - started
    token = logits[:, -1:].argmax(-1)
    token.tolist()  # to the host, where a user would see it
    first_token_seconds = time.perf_counter() - started
    seconds = []
    for _ in range(n_tokens):
        step_started = time.perf_counter()
        token = step(token)[:, -1:].argmax(-1)
        seconds.append(time.perf_counter() - step_started)
    return {
        "prefill_seconds": prefill_seconds,
        "first_token_seconds": first_token_seconds,
        "tokens_per_second": len(ids) / statistics.median(seconds),
        "peak_bytes": torch.cuda.max_memory_allocated(loaded.device) - before if cuda else math.nan,
        "kv_bytes": cache.kv_bytes(),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
