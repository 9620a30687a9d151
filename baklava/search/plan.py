"""From a memory cap to a ratio, and to budgets for it: `baklava plan`."""

from __future__ import annotations

from collections.abc import Sequence

from baklava.errors import UserError
from baklava.experiment.components import ModelConfig
from baklava.experiment.compose import compose
from baklava.experiment.jobs import AllocateJob
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig
from baklava.experiment.settings import PlanConfig
from baklava.models.memory import Division, Workload, divide_memory
from baklava.models.shape import read_shape
from baklava.models.weights import ITEMSIZE, weight_bytes

UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


def plan(overrides: Sequence[str]) -> None:
    """Print how the memory divides and the ratio that it takes, for each model; write budgets where asked to.

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
        ratio = _plan_model(model, config.plan)
        if allocator is not None:
            _write_budgets(config, name, allocator, ratio)


def _plan_model(model: ModelConfig, settings: PlanConfig) -> float:
    """Print the division for one model and return the ratio that it takes."""
    memory = settings.gpu_memory if settings.gpu_memory is not None else _device_memory(model)
    shape, itemsize, weights = read_shape(model), ITEMSIZE[model.dtype], weight_bytes(model)
    work = Workload(
        context=settings.context,
        new_tokens=settings.new_tokens,
        batch=settings.batch,
        rows=min(settings.prefill_rows, settings.batch),
        chunk=settings.prefill_chunk,
    )
    found = divide_memory(shape, work, available=memory - settings.reserve - weights, itemsize=itemsize)
    per_token = shape.n_layers * shape.kv_bytes_per_token(itemsize)
    if found.ratio > settings.largest_ratio:
        raise UserError(_misfit(model, settings, found, memory=memory, weights=weights))
    way = f"in chunks of {work.chunk}" if found.chunked else "in one pass"
    rows = [
        ("weights", weights, model.dtype),
        ("reserve", settings.reserve, "of the device, and of its allocator"),
        ("reading a context", found.reading, f"estimate; {work.rows} at a time, {way}"),
        ("kept whole", found.unbudgeted, "new tokens and sliding windows"),
        ("KV caches", found.kv_full, f"uncompressed; {_size(per_token)} per token"),
    ]
    print(f"{model.name}: {work.batch} x {work.context} tokens in {_size(memory)}")
    for part, n_bytes, note in rows:
        print(f"  {part:<18}{_size(n_bytes):>11}  {note}")
    if found.ratio == 0:
        print("  fits without compression")
    else:
        kept = (1.0 - found.ratio) * found.kv_full
        print(f"  fits at ratio {found.ratio:g}: {_size(kept)} of KV caches, {1 - found.ratio:.1%} of their entries")
    return found.ratio


def _misfit(model: ModelConfig, settings: PlanConfig, found: Division, *, memory: int, weights: int) -> str:
    least = (1.0 - settings.largest_ratio) * found.kv_full
    left = memory - weights - settings.reserve - found.reading - found.unbudgeted
    remains = f"leave {_size(left)}" if left > 0 else f"are {_size(-left)} too much"
    return (
        f"{model.name} does not fit: of {_size(memory)}, weights ({_size(weights)}), "
        f"reserve ({_size(settings.reserve)}), "
        f"reading a context ({_size(found.reading)}) and what is kept whole ({_size(found.unbudgeted)}) {remains}, and "
        f"{settings.batch} x {settings.context} tokens take {_size(least)} at the largest ratio, "
        f"{settings.largest_ratio:g}; lower plan.context or plan.batch, or raise plan.gpu_memory"
    )


def _size(n_bytes: float) -> str:
    """In the largest unit of which there is at least a half."""
    unit = next((unit for unit, size in UNITS.items() if n_bytes >= size / 2), "KiB")
    return f"{n_bytes / UNITS[unit]:.2f} {unit}"


def _device_memory(model: ModelConfig) -> int:
    import torch

    if not torch.cuda.is_available():
        raise UserError("plan.gpu_memory: there is no CUDA device here to ask; say how much, as in 24GiB")
    return int(torch.cuda.get_device_properties(model.device if model.device != "auto" else "cuda").total_memory)


def _write_budgets(config: ExperimentConfig, model: str, allocator: str, ratio: float) -> None:
    if ratio == 0:
        return
    layout = ExperimentPaths(config.results, config.name)
    eviction = next(iter(config.evictions))
    job = AllocateJob.of(config, layout, model, allocator, eviction)
    if not job.profile.is_file():
        raise UserError(f"{job.profile}: no profile to make budgets from; make it with `baklava profile`")
    path = layout.plan(model, allocator, eviction, ratio)
    from baklava.search.run import allocate

    allocate(job.model_copy(update={"budgets": {ratio: path}, "trace": path.with_suffix(".parquet")}))
    print(f"  budgets: {path}")
