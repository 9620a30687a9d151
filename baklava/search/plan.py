"""From a memory cap to a ratio, and to budgets for it: `baklava plan`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from baklava.budgets.bits import EXACT, WIDTHS, EntrySize, entries_within
from baklava.errors import UserError
from baklava.experiment.components import EvictionConfig, ModelConfig
from baklava.experiment.compose import compose
from baklava.experiment.jobs import AllocateJob
from baklava.experiment.paths import ExperimentPaths, ratio_name
from baklava.experiment.schema import ExperimentConfig
from baklava.experiment.settings import PlanConfig
from baklava.models.memory import Workload, divide_memory
from baklava.models.shape import ModelShape, read_shape
from baklava.models.weights import ITEMSIZE, weight_bytes
from baklava.search.trace import Cost
from baklava.system.units import format_size

DEFAULT_CONTEXT = 32768  # tokens, or what the model has positions for


def plan(overrides: Sequence[str]) -> None:
    """Print for each model how the memory divides and which ratio fits; write budgets where asked to.

    Raises `UserError` where a model does not fit, in one line that says what takes the memory.
    """
    config = compose(overrides)
    allocator = config.plan.allocator
    if allocator is not None and allocator not in config.allocators:
        raise UserError(
            f"plan.allocator: {allocator!r} is not among the allocators {', '.join(config.allocators)}; "
            f"add it with allocator={allocator}"
        )
    for name, model in config.models.items():
        ratio = _plan_model(model, config.plan, *next(iter(config.evictions.items())))
        if allocator is not None:
            _write_budgets(config, name, allocator, ratio)


def _plan_model(model: ModelConfig, settings: PlanConfig, eviction: str, policy: EvictionConfig) -> float:
    """Print how the memory divides for one model, and return the ratio that fits."""
    memory = settings.gpu_memory if settings.gpu_memory is not None else _device_memory(model)
    shape, itemsize, weights = read_shape(model), ITEMSIZE[model.dtype], weight_bytes(model)
    work = Workload(
        context=_context(model, shape, settings),
        new_tokens=settings.new_tokens,
        batch=settings.batch,
        rows=min(settings.prefill_rows, settings.batch),
        chunk=settings.prefill_chunk,
        all_layers=policy.build().needs_all_layers,
    )
    available = memory - settings.reserve - weights
    least = 1.0 - settings.largest_ratio
    division = divide_memory(shape, work, available=available, itemsize=itemsize, least_share=least)
    per_token = shape.n_layers * shape.kv_bytes_per_token(itemsize)
    way = f"in chunks of {work.chunk}" if division.chunked else "in one pass"
    whole = f"; {eviction} compresses no layer before all are read" if work.all_layers else ""
    rows = [
        ("weights", weights, model.dtype),
        ("plan.reserve", settings.reserve, "for the device and its allocator"),
        ("reading a context", division.reading, f"estimate; {work.rows} at a time, {way}{whole}"),
        ("kept whole", division.unbudgeted, "new tokens and sliding windows"),
        ("KV caches", division.kv_full, f"uncompressed; {format_size(per_token)} per token"),
    ]
    if division.ratio > settings.largest_ratio:
        parts = {
            "weights": weights,
            "plan.reserve": settings.reserve,
            f"reading a context {way}": division.reading,
            "what is kept whole": division.unbudgeted,
            "KV caches": least * division.kv_full,
        }
        missing = format_size(division.missing)
        uses = ", ".join(f"{part} {format_size(n_bytes)}" for part, n_bytes in parts.items())
        raise UserError(
            f"{model.name} does not fit: {work.batch} x {work.context} tokens at plan.largest_ratio="
            f"{settings.largest_ratio:g} take {missing} more than {format_size(memory)} ({uses}); "
            "lower plan.context, plan.batch or plan.reserve, or raise plan.gpu_memory"
        )
    print(f"{model.name}: {work.batch} x {work.context} tokens in {format_size(memory)}")
    for item, n_bytes, note in rows:
        print(f"  {item:<18}{format_size(n_bytes):>11}  {note}")
    if division.ratio == 0:
        print("  fits without compression")
    else:
        kept = (1.0 - division.ratio) * division.kv_full
        entries = f"{1 - division.ratio:.1%} of their entries"
        print(f"  fits at ratio {division.ratio:g}: {format_size(kept)} of KV caches, {entries}")
        if in_bits := _entries_in_bits(division.ratio, work.context, shape.head_dim, itemsize):
            print(f"  or in the same bytes: {in_bits}")
    return division.ratio


def _entries_in_bits(ratio: float, context: int, dim: int, itemsize: int) -> str:
    """How many of their entries all KV caches may keep in fewer bits; empty where heads cannot be quantised."""
    size = EntrySize(dims=(dim, dim), itemsize=itemsize)
    if dim % min(size.packing.group, dim):
        return ""
    total = (1.0 - ratio) * context * size.n_bytes
    parts = []
    for width in sorted(set(WIDTHS) - {EXACT}, reverse=True):
        [kept] = entries_within(np.ones(1), np.full((1, 2), width), context, total, size)
        parts.append(f"{kept / context:.1%} of them at {width} bits" if kept < context else f"all at {width} bits")
    return ", ".join(parts)


def _context(model: ModelConfig, shape: ModelShape, settings: PlanConfig) -> int:
    """The context asked for. Raises `UserError` where the model has too few positions for it and the new tokens."""
    most = shape.n_positions - settings.new_tokens if shape.n_positions else settings.context or DEFAULT_CONTEXT
    if settings.context is None and most > 0:
        return min(DEFAULT_CONTEXT, most)
    if most < (context := settings.context or 1):
        raise UserError(
            f"plan.context: {context} tokens and {settings.new_tokens} new ones (plan.new_tokens) are more than "
            f"the {shape.n_positions} positions of model {model.name}; "
            + (f"set plan.context to {most} or less" if most > 0 else "lower plan.new_tokens")
        )
    return settings.context or most


def _device_memory(model: ModelConfig) -> int:
    import torch

    if not torch.cuda.is_available():
        raise UserError("plan.gpu_memory: there is no CUDA device here to ask; say how much, as in 24GiB")
    return int(torch.cuda.get_device_properties(model.device if model.device != "auto" else "cuda").total_memory)


def _write_budgets(config: ExperimentConfig, model: str, allocator: str, ratio: float) -> None:
    """Name budgets that fit: the experiment's own where it has some, else new ones at the ratio itself."""
    if ratio == 0:
        return
    paths = ExperimentPaths(config.results, config.name)
    eviction = next(iter(config.evictions))
    found = _fitting_budgets(paths, model, allocator, eviction, ratio, config.plan.largest_ratio)
    if found is not None:
        at = f"{found.stem}, the next at which the experiment has some; add {ratio:g} to `ratios` for its own"
        print(f"  budgets: {found} (at ratio {at if found.stem != ratio_name(ratio) else found.stem})")
        return
    job = AllocateJob.of(config, paths, model, allocator, eviction)
    if not job.profile.is_file():
        raise UserError(
            f"{job.profile}: no profile to make budgets from; make it with `baklava profile`, or name the experiment "
            "that has one with name=..."
        )
    path = paths.plan(model, allocator, eviction, ratio)
    if job.allocator.build().searches:
        print(f"  {_announce(job, ratio)}", flush=True)
    from baklava.search.run import allocate

    own = {"budgets": {ratio: path}, "trace": path.with_suffix(".parquet"), "cost": path.with_suffix(".cost.json")}
    allocate(job.model_copy(update=own))
    print(f"  budgets: {path}")


def _fitting_budgets(
    paths: ExperimentPaths, model: str, allocator: str, eviction: str, ratio: float, largest: float
) -> Path | None:
    """The experiment's budgets at the smallest ratio that fits, None where it has none."""
    files = paths.budgets(model, allocator, eviction, ratio).parent.glob("*.json")
    fitting = [path for path in files if ratio - 1e-9 <= float(path.stem) <= largest + 1e-9]
    return min(fitting, key=lambda path: float(path.stem), default=None)


def _announce(job: AllocateJob, ratio: float) -> str:
    """What the search for one ratio will do, and how long it takes if it takes what the experiment's own took."""
    words = f"no budgets at ratio {ratio:g} or above: searching some, on the prompts of {job.prompts}"
    try:
        cost = Cost.load(job.cost)
    except UserError:
        if job.allocator.build().searches_mappings:
            return f"{words}: up to {8 * job.search.n_rounds} mappings on each, once"
        return f"{words}: the time of 10 to 40 prefills of them"
    n_ratios = 1  # growth climbs one path for all of them
    if job.allocator.build().searches_mappings:
        n_ratios = max(1, len(list(next(iter(job.budgets.values())).parent.glob("*.json"))))
    return (
        f"{words}: about {math.ceil(cost.seconds / n_ratios / 60)} min, by the search of the experiment's other ratios"
    )
